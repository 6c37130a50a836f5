"""RL data files of the data root: heads without reading the whole, and taking in an upload."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from leverplus import rl_data
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.errors import InvalidConfig, InvalidInput, InvalidRlData, NotFound, shorten
from leverplus.files import file_sha256
from leverplus.fingerprint import Fingerprint

_HEAD_LIMIT = 64 * 1024 * 1024


def head(path: Path) -> dict[str, Any]:
    """`_meta` of an RL data file of the data root: its first line. NotFound, or InvalidRlData for a file without one."""
    if not path.is_file():
        raise NotFound(what="rl_data", name=path.stem, hint="GET /rl-data lists them")
    with path.open("rb") as stream:
        line = stream.readline(_HEAD_LIMIT)
    try:
        meta = orjson.loads(line)["_meta"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
        raise InvalidRlData(file=path, query=None, field="_meta", reason="the first line holds none; upload it again") from exc
    if not isinstance(meta, dict):
        raise _damaged(path, "_meta", meta)
    try:
        fingerprint = Fingerprint.from_json(meta.get("fingerprint"))
    except InvalidInput as exc:
        raise InvalidRlData(file=path, query=None, field="_meta", reason=f"{exc}; upload it again") from exc
    if fingerprint.dataset is not None and not isinstance(name := fingerprint.dataset.get("name"), str):
        raise _damaged(path, "_meta.fingerprint.dataset.name", name)
    if not isinstance(policy := meta.get("pool_policy"), dict | None):
        raise _damaged(path, "_meta.pool_policy", policy)
    return meta


def _damaged(path: Path, field: str, found: object) -> InvalidRlData:
    expected = "a name" if field.endswith("name") else "an object"
    reason = f"is {shorten(repr(found))}, expected {expected}; upload it again"
    return InvalidRlData(file=path, query=None, field=field, reason=reason)


def open_heads(root: DataRoot, rl_data_ids: Sequence[str]) -> Fingerprint:
    """The fingerprint that all these files share; FingerprintMismatch naming the first that departs from it."""
    if len(set(rl_data_ids)) != len(rl_data_ids):
        raise InvalidConfig(field="rl_data", reason=f"{list(rl_data_ids)} names one twice")
    shared: Fingerprint | None = None
    for rl_data_id in rl_data_ids:
        fingerprint = Fingerprint.from_json(head(root.rl_data(rl_data_id)).get("fingerprint"))
        if shared is None:
            shared = fingerprint
        shared.require_same(fingerprint, subject=f"RL data {rl_data_id!r}")
    if shared is None:
        raise InvalidConfig(field="rl_data", reason="names no file")
    return shared


def upload_folder(root: DataRoot) -> Path:
    """A new folder below rl-data for one upload; the caller removes it."""
    parent = root.path / "rl-data"
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".upload-", dir=parent))


def take_in(
    uploaded: Path,
    root: DataRoot,
    dataset_name: str,
    name: str = "upload",
    *,
    info_score: rl_data.InfoScoreSign | None = None,
) -> tuple[str, dict[str, Any]]:
    """Checks an uploaded file against a dataset and keeps it. Returns its id, made from its contents, and its report.

    Errors call the file `name`: where it lies here says nothing to who sent it. `info_score`: which scores of a legacy InfoScore
    file are the better ones, as `rl_data.stream` takes it; one file read both ways is two RL data.

    InvalidRlData, IdOutsidePool or FingerprintMismatch when it does not fit; nothing is kept then.
    """
    dataset = Dataset.open(root.dataset(dataset_name))
    data = rl_data.stream(uploaded, dataset, name=name, info_score=info_score)
    fingerprint = replace(data.fingerprint, dataset=dataset.fingerprint())
    rl_data_id = f"rl-{file_sha256(uploaded)[:12]}" + (f"-{info_score}" if info_score else "")
    path = root.rl_data(rl_data_id)
    rl_data.write(path, data.records, fingerprint=fingerprint, meta=data.meta)
    root.publish(path)
    return rl_data_id, rl_data.inspect(path)
