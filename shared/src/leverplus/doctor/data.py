"""The data folder: room, rights, and whether what lies there belongs together."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from leverplus.checkpoints import CheckpointInfo, list_checkpoints, load_checkpoint
from leverplus.data_root import KINDS, DataRoot
from leverplus.dataset import Dataset
from leverplus.deployments import read_deployment
from leverplus.doctor.finding import Finding, Notable, checked
from leverplus.embeddings import Embeddings
from leverplus.errors import FingerprintMismatch, InvalidConfig, InvalidDataset, LeverPlusError, NotFound
from leverplus.fingerprint import Fingerprint
from leverplus.pools import PoolPolicy, pool_fingerprint

_LEAST_FREE = 2**30
_LOW_SHARE = 0.1
_SHOWN = 5


def data_findings(data: Path, shared_url: str | None = None) -> Iterator[Finding]:
    yield checked("data", lambda: writable(data))
    yield checked("shared files", lambda: _shared(data, shared_url))
    for what, folder in (("disk of the data", data), ("disk of temporary files", Path(tempfile.gettempdir()))):
        yield checked(what, lambda folder=folder: room(folder))
    if not data.is_dir():
        return
    root = DataRoot(data)
    datasets: dict[str, Dataset] = {}
    embeddings: dict[str, Embeddings] = {}
    for path in sorted((data / "datasets").glob("[!.]*/dataset.json")):
        name = path.parent.name
        yield checked(f"dataset {name}", lambda path=path, name=name: _dataset(path.parent, name, datasets))
        if name in datasets and root.embeddings(name).is_dir():
            yield checked(f"embeddings {name}", lambda name=name: _embeddings(root, name, datasets, embeddings))
    yield from _checkpoints(root, datasets, embeddings)
    for path in sorted((data / "deployments").glob("[!.]*.json")):
        yield checked(f"deployment {path.stem}", lambda path=path: _deployment(root, path.stem, datasets, embeddings))


def writable(data: Path) -> str:
    """That the data folder, or the one that it would be made in, and what lies there can be written."""
    there = next(path for path in (data, *data.parents) if path.exists())
    if not there.is_dir():
        raise InvalidConfig(field="--data", reason=f"{there} is not a folder")
    for folder in (there, *(data / kind for kind in KINDS if (data / kind).is_dir())):
        try:
            # Permissions do not tell everything: a file system may be mounted read-only, or be full.
            with tempfile.TemporaryFile(dir=folder) as stream:
                stream.write(bytes(4096))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as exc:
            reason = (
                f"{folder} cannot be written: {exc.strerror}; give it to the user that the services run as, or free some space"
            )
            raise InvalidConfig(field="--data", reason=reason) from exc
    return str(data) if there == data else f"{data} (not there yet)"


def room(folder: Path) -> str:
    """That there is room for what services write next."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    told = f"{usage.free / 2**30:.1f} GiB of {usage.total / 2**30:.1f} GiB free at {there}"
    if usage.free < _LEAST_FREE:
        raise InvalidConfig(
            field="disk", reason=f"{told}; `leverplus disk` says what takes it, LEVERPLUS_RETENTION_DAYS keeps it down"
        )
    if usage.free < usage.total * _LOW_SHARE:
        raise Notable(f"{told}; `leverplus disk` says what takes it")
    return told


def _shared(data: Path, url: str | None) -> str:
    """That the store through which hosts share files answers."""
    root = DataRoot.at(data, url)
    if root.shared is None:
        return "LEVERPLUS_SHARED is unset: this host's alone"
    return f"{url} answers: datasets {', '.join(root.shared.names(root.path / 'datasets')) or 'none'}"


def _dataset(folder: Path, name: str, opened: dict[str, Dataset]) -> str:
    dataset = Dataset.open(folder)
    if dataset.name != name:
        raise InvalidDataset(path=folder, reason=f"dataset.json calls it {dataset.name!r}; name the folder so")
    opened[name] = dataset
    images = {item.image for item in dataset.items if item.image is not None}
    missing = sorted(image for image in images if not (folder / image).is_file())
    if missing:
        raise InvalidDataset(
            path=folder, reason=f"{len(missing)} of {len(images)} images are missing, e.g. {missing[0]}; import again"
        )
    return f"{len(dataset)} items, {len(images)} images, sha256 {dataset.info.sha256[:12]} as recorded"


def _embeddings(root: DataRoot, name: str, datasets: dict[str, Dataset], opened: dict[str, Embeddings]) -> str:
    embeddings = opened[name] = Embeddings.open(root.embeddings(name), datasets[name])
    manifest, known = embeddings.manifest, int(embeddings.known.sum())
    some = "" if known == manifest.count else f" of {manifest.count} items"
    return f"{known}{some}, d_model {manifest.d_model}, sha256 {manifest.sha256[:12]} as recorded"


def _require_same_data(info: CheckpointInfo, datasets: dict[str, Dataset], embeddings: dict[str, Embeddings]) -> None:
    """FingerprintMismatch where dataset, embeddings or pools are others than the checkpoint states."""
    if info.dataset not in datasets or info.dataset not in embeddings:
        hint = f"checkpoint {info.checkpoint_id} was made for it: import and embed it again, or promote another checkpoint"
        raise NotFound(what="sound dataset with embeddings", name=info.dataset, hint=hint)
    pool = pool_fingerprint(PoolPolicy.from_json(info.pool_policy), embeddings[info.dataset])
    here = Fingerprint(dataset=datasets[info.dataset].fingerprint(), pool=pool)
    info.fingerprint.require_same(here, subject="what lies here", parts=("dataset", "pool"))


def _checkpoints(root: DataRoot, datasets: dict[str, Dataset], embeddings: dict[str, Embeddings]) -> Iterator[Finding]:
    infos, broken = list_checkpoints(root)
    for name, error in sorted(broken.items()):
        yield Finding(f"checkpoint {name}", "WRONG", f"{error}; put back a copy, or `leverplus checkpoints delete {name}`")
    stale: list[str] = []
    for info in infos:
        try:
            _require_same_data(info, datasets, embeddings)
        except LeverPlusError:
            stale.append(info.checkpoint_id)
    if infos:
        yield checked("checkpoints", lambda: _told(len(infos), sorted(stale)))


def _told(count: int, stale: list[str]) -> str:
    if stale:
        listed = ", ".join(stale[:_SHOWN]) + (", …" if len(stale) > _SHOWN else "")
        raise Notable(f"{len(stale)} of {count} were made for other data than lies here and cannot be served: {listed}")
    return f"{count}, made for the data that lies here"


def _deployment(root: DataRoot, alias: str, datasets: dict[str, Dataset], embeddings: dict[str, Embeddings]) -> str:
    deployment = read_deployment(root, alias)
    way_out = f"promote another under {alias!r}, or roll it back"
    folder = root.checkpoint(deployment.checkpoint_id)
    if not folder.is_dir():
        raise NotFound(what="checkpoint", name=deployment.checkpoint_id, hint=f"the deployment rests on it: {way_out}")
    try:
        _, info = load_checkpoint(folder)
        _require_same_data(info, datasets, embeddings)
    except FingerprintMismatch as exc:
        raise InvalidConfig(field=f"deployment {alias}", reason=f"{exc}; put those data back, or {way_out}") from exc
    earlier = (deployment.predecessor or {}).get("checkpoint_id")
    if earlier is not None and not root.checkpoint(earlier).is_dir():
        raise Notable(f"{deployment.checkpoint_id}; {earlier}, which it would roll back to, is gone")
    return f"{deployment.checkpoint_id}, promoted {deployment.promoted_at} by {deployment.by}"
