"""The demo's data ready to be served: what assets/demo holds, with the dataset and embeddings that it was made from.

assets/demo is a checkpoint and the RL data that trained it. The dataset follows from its seed, the embeddings from the
encoders, so they are made again, and the checkpoint is refused unless they have the fingerprints that it states.
"""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson

from leverplus.checkpoints import CheckpointInfo, Tensors, load_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import SIZES, generate
from leverplus.demo.config import CUTS
from leverplus.deployments import DEFAULT_ALIAS, promote, read_deployment
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidRlData, NotFound
from leverplus.files import atomic_file, atomic_folder, file_sha256, write_json
from leverplus.fingerprint import Fingerprint
from leverplus.pools import PoolPolicy, pool_fingerprint
from leverplus.selector_health import checkpoint_health

CHECKPOINT = "checkpoint"
RL_DATA_SUFFIX = ".ndjson.xz"

_MARK = "demo-imported.json"
_CUT = CUTS["standard"]
_REASON = "demo: it came with the repository, whatever an evaluation says"


def import_demo(
    root: DataRoot, shipped: Path, *, made: DataRoot | None = None, report: Callable[[str], None] = lambda _: None
) -> None:
    """Fills `root` with the demo's dataset, embeddings, RL data and checkpoint, promoted where `production` serves nothing.

    What is there already stays. `made`: a data root to copy dataset and embeddings from, which else are made (the embeddings in
    about 40 s on one core). A root that once was filled is left alone, so that what was deleted from it stays away.
    NotFound without `shipped`; FingerprintMismatch, InvalidCheckpoint or InvalidRlData where its files do not belong together.
    """
    mark = root.path / _MARK
    if mark.is_file():
        when = orjson.loads(mark.read_bytes())["imported_at"]
        report(f"{root.path} was given the demo's data at {when} and is left as it is; delete {mark.name} to have them again")
        return
    if not (shipped / CHECKPOINT).is_dir():
        raise NotFound(what="demo data", name=str(shipped), hint="assets/demo of the repository holds it; name it with --shipped")
    tensors, info = load_checkpoint(shipped / CHECKPOINT)
    dataset = _dataset(root, made)
    report(f"{_CUT.dataset}: {len(dataset.items)} questions")
    embeddings = _embeddings(root, made, dataset)
    report(f"embeddings: d_model {embeddings.manifest.d_model}")
    _require_belonging(info, dataset, embeddings)
    report(f"RL data: {', '.join(_import_rl_data(root, shipped, info))}")
    _copy_folder(shipped / CHECKPOINT, root.checkpoint(info.checkpoint_id))
    _promote(root, tensors, info, report)
    write_json(mark, {"imported_at": datetime.now(UTC).isoformat(timespec="seconds"), "checkpoint": info.checkpoint_id})


def _dataset(root: DataRoot, made: DataRoot | None) -> Dataset:
    folder = root.dataset(_CUT.dataset)
    if made is not None:
        _copy_folder(made.dataset(_CUT.dataset), folder)
    elif not folder.is_dir():
        generate(folder, name=_CUT.dataset, **SIZES[_CUT.items])
    return Dataset.open(folder)


def _embeddings(root: DataRoot, made: DataRoot | None, dataset: Dataset) -> Embeddings:
    folder = root.embeddings(_CUT.dataset)
    if made is not None:
        _copy_folder(made.embeddings(_CUT.dataset), folder)
    elif not folder.is_dir():
        from leverplus.embeddings.encoders import embed_dataset

        embed_dataset(dataset).save(folder)
    return Embeddings.open(folder, dataset)


def _copy_folder(source: Path, target: Path) -> None:
    """Whole or not at all; a target that is there stays."""
    if not target.is_dir():
        with atomic_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)


def _require_belonging(info: CheckpointInfo, dataset: Dataset, embeddings: Embeddings) -> None:
    found = Fingerprint(dataset=dataset.fingerprint(), pool=pool_fingerprint(PoolPolicy.from_json(info.pool_policy), embeddings))
    subject = f"what was made for the demo's checkpoint {info.checkpoint_id}"
    info.fingerprint.require_same(found, subject=subject, parts=("dataset", "pool"))


def _import_rl_data(root: DataRoot, shipped: Path, info: CheckpointInfo) -> list[str]:
    """Ids of the files that trained the checkpoint, unpacked under the hashes that it states."""
    for stated in info.rl_data:
        packed, target = shipped / f"{stated['id']}{RL_DATA_SUFFIX}", root.rl_data(stated["id"])
        if not target.is_file():
            with lzma.open(packed) as source, atomic_file(target) as stream:
                shutil.copyfileobj(source, stream)
        if (found := file_sha256(target)) != stated["sha256"]:
            reason = f"sha256 is {found[:12]}…, the checkpoint was trained on {stated['sha256'][:12]}…; restore {packed}"
            raise InvalidRlData(file=target, query=None, field="_meta", reason=reason)
    return [stated["id"] for stated in info.rl_data]


def _promote(root: DataRoot, tensors: Tensors, info: CheckpointInfo, report: Callable[[str], None]) -> None:
    if root.deployment(DEFAULT_ALIAS).is_file():
        serves = read_deployment(root, DEFAULT_ALIAS).checkpoint_id
        report(f"{DEFAULT_ALIAS} goes on serving {serves}; {info.checkpoint_id} can be promoted")
        return
    health = checkpoint_health(root, tensors, info)
    promote(root, DEFAULT_ALIAS, info.checkpoint_id, by="leverplus import demo", reason=_REASON, health=health)
    report(f"{DEFAULT_ALIAS} serves {info.checkpoint_id}")
