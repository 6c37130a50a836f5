"""The checkpoint folder: `model.safetensors` and `checkpoint.json`. numpy only, so that serving needs no torch.

A checkpoint says itself what it is: the selector's configuration gives the name and shape of every tensor, and a folder
that holds others, fewer or more is refused.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from leverplus.data_root import DataRoot, is_name
from leverplus.errors import Conflict, InvalidCheckpoint, InvalidConfig, InvalidInput, LeverPlusError, NotFound, shorten
from leverplus.files import Fence, atomic_folder, file_sha256, write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import MAX_SHOTS
from leverplus.selector.config import SelectorConfig, tensor_shapes

FORMAT = "leverplus-checkpoint-1"
MODEL_FILE = "model.safetensors"
INFO_FILE = "checkpoint.json"

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class CheckpointInfo:
    """checkpoint.json.

    `selector`: the fields of SelectorConfig. `pool_policy`: PoolPolicy.to_json, empty where it is unknown. `shots`: the
    numbers of demonstrations it was trained on. `rl_data`: [{"id", "sha256"}]. `created_at`: ISO 8601, UTC.
    `best_fixed`: for each number of shots, as text, the pointers that did best on its training queries whatever the query, best
    first; empty where it was made without such scores. `model_sha256` is filled in by `save_checkpoint`.
    """

    checkpoint_id: str
    format: str
    selector: dict[str, Any]
    dataset: str
    pool_policy: dict[str, Any]
    shots: list[int]
    fingerprint: Fingerprint
    training: dict[str, Any]
    rl_data: list[dict[str, str]]
    metrics: dict[str, Any]
    code_version: str
    created_at: str
    model_sha256: str = field(default="")
    best_fixed: dict[str, list[list[int]]] = field(default_factory=dict[str, list[list[int]]])

    @property
    def selector_config(self) -> SelectorConfig:
        return SelectorConfig.from_json(self.selector)

    def to_json(self) -> dict[str, Any]:
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**value, "fingerprint": self.fingerprint.to_json()}


def save_checkpoint(
    folder: Path, tensors: Mapping[str, npt.NDArray[np.float32]], info: CheckpointInfo, *, fence: Fence | None = None
) -> CheckpointInfo:
    """Writes the folder whole or not at all; returns the completed info.

    Raises what `fence` raises, Conflict if the folder exists, InvalidCheckpoint if the tensors are not those of info.selector.
    """
    if folder.exists():
        raise Conflict(f"checkpoint {folder} exists already; checkpoints are never overwritten, choose another id")
    if info.format != FORMAT:
        raise InvalidCheckpoint(path=folder, reason=f"format is {info.format!r}, expected {FORMAT!r}")
    _check_tensors(folder, tensors, info)
    with atomic_folder(folder, fence=fence) as target:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, target / MODEL_FILE)
        complete = replace(info, model_sha256=file_sha256(target / MODEL_FILE))
        write_json(target / INFO_FILE, complete.to_json())
        # safetensors leaves its file to the owner alone; others may read it like its neighbour.
        (target / MODEL_FILE).chmod((target / INFO_FILE).stat().st_mode)
    return complete


def read_info(folder: Path) -> CheckpointInfo:
    """checkpoint.json alone. NotFound without one, InvalidCheckpoint where it cannot be read or lacks a field."""
    path = folder / INFO_FILE
    if not path.is_file():
        raise NotFound(what="checkpoint", name=folder.name, hint=f"{folder} has no {INFO_FILE}")
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as exc:
        raise InvalidCheckpoint(path=path, reason=f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidCheckpoint(path=path, reason=f"a {type(value).__name__}, expected an object")
    if value.get("format") != FORMAT:
        raise InvalidCheckpoint(path=path, reason=f"format is {value.get('format')!r}, expected {FORMAT!r}")
    names = {item.name for item in fields(CheckpointInfo)}
    if missing := sorted(names - {"best_fixed"} - set(value)):
        raise InvalidCheckpoint(path=path, reason=f"field {missing[0]!r} is missing")
    if unknown := sorted(set(value) - names):
        raise InvalidCheckpoint(path=path, reason=f"unknown field {unknown[0]!r}")
    expected = {"selector": dict, "pool_policy": dict, "training": dict, "metrics": dict, "shots": list, "rl_data": list}
    expected |= {
        "fingerprint": dict,
        **dict.fromkeys(("checkpoint_id", "dataset", "code_version", "created_at", "model_sha256"), str),
    }
    for name, kind in expected.items():
        if not isinstance(value[name], kind):
            raise InvalidCheckpoint(
                path=path, reason=f"field {name!r} is {shorten(repr(value[name]))}, expected a {kind.__name__}"
            )
    if not value["shots"] or not all(type(count) is int and 0 <= count <= MAX_SHOTS for count in value["shots"]):
        reason = f"field 'shots' is {shorten(repr(value['shots']))}, expected whole numbers of 0 to {MAX_SHOTS}, one at least"
        raise InvalidCheckpoint(path=path, reason=reason)
    if not is_name(value["dataset"]):
        raise InvalidCheckpoint(path=path, reason=f"field 'dataset' is {shorten(repr(value['dataset']))}, which is no valid name")
    for stated in value["rl_data"]:
        if not (isinstance(stated, dict) and all(isinstance(stated.get(name), str) for name in ("id", "sha256"))):
            raise InvalidCheckpoint(path=path, reason=f"field 'rl_data' holds {stated!r}, expected objects of id and sha256")
    if not _are_fixed_pointers(fixed := value.get("best_fixed", {})):
        reason = f"field 'best_fixed' is {shorten(repr(fixed))}, expected lists of pointers by their number of shots"
        raise InvalidCheckpoint(path=path, reason=reason)
    try:
        fingerprint = Fingerprint.from_json(value["fingerprint"])
    except InvalidInput as exc:
        raise InvalidCheckpoint(path=path, reason=str(exc)) from exc
    known: dict[str, Any] = {**value, "fingerprint": fingerprint}
    return CheckpointInfo(**known)


def load_checkpoint(folder: Path) -> tuple[Tensors, CheckpointInfo]:
    """Tensors by name and the info.

    Raises NotFound (no checkpoint), InvalidCheckpoint (unreadable, altered since it was written, a tensor missing,
    unexpected, of another shape, or not finite).
    """
    path = folder / MODEL_FILE
    with _naming(folder):
        info = read_info(folder)
        _require_recorded(path, info)
        try:
            tensors = load_file(path)
        except SafetensorError as exc:
            raise InvalidCheckpoint(path=path, reason=f"not a safetensors file: {exc}") from exc
    _check_tensors(path, tensors, info)
    return tensors, info


def require_unchanged(folder: Path, info: CheckpointInfo) -> None:
    """That the folder still holds what was loaded as `info`, tensors by their sha256; raises as `load_checkpoint` does."""
    with _naming(folder):
        if read_info(folder) != info:
            raise InvalidCheckpoint(path=folder / INFO_FILE, reason="no longer what was loaded; restore the whole folder")
        _require_recorded(folder / MODEL_FILE, info)


def list_checkpoints(root: DataRoot) -> tuple[list[CheckpointInfo], dict[str, LeverPlusError]]:
    """Every checkpoint of the data root, oldest first; and the folders that cannot be read, by name, each with its error."""
    parent = root.path / "checkpoints"
    # A name with a dot in front is a folder that is still being written.
    folders = [path for path in parent.iterdir() if path.is_dir() and path.name[0] != "."] if parent.is_dir() else []
    found: list[CheckpointInfo] = []
    broken: dict[str, LeverPlusError] = {}
    for folder in sorted(folders):
        try:
            found.append(read_info(folder))
        except LeverPlusError as exc:
            broken[folder.name] = exc
    return sorted(found, key=lambda info: (info.created_at, info.checkpoint_id)), broken


def _are_fixed_pointers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(pointers, list)
        and all(
            isinstance(pointer, list) and str(len(pointer)) == shots and all(type(item_id) is int for item_id in pointer)
            for pointer in pointers
        )
        for shots, pointers in value.items()
    )


@contextmanager
def _naming(folder: Path) -> Generator[None]:
    """What the system says of a file there is the checkpoint's fault."""
    try:
        yield
    except OSError as exc:
        raise InvalidCheckpoint(path=exc.filename or folder, reason=f"cannot be read: {exc.strerror or exc}") from exc


def _require_recorded(path: Path, info: CheckpointInfo) -> None:
    if not path.is_file():
        raise InvalidCheckpoint(path=path, reason="missing; restore the whole folder")
    if (found := file_sha256(path)) != info.model_sha256:
        raise InvalidCheckpoint(
            path=path, reason=f"sha256 is {found[:12]}…, {INFO_FILE} says {info.model_sha256[:12]}…; restore the whole folder"
        )


def _check_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], info: CheckpointInfo) -> None:
    try:
        expected = tensor_shapes(info.selector_config)
    except InvalidConfig as exc:
        raise InvalidCheckpoint(path=path, reason=f"its configuration is unusable: {exc}") from exc
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise InvalidCheckpoint(path=path, reason=f"tensors missing: {missing}, unexpected: {unexpected}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise InvalidCheckpoint(path=path, reason=f"tensor {name} is {tensor.dtype} {tensor.shape}, expected float32 {shape}")
        if not np.isfinite(tensor).all():
            raise InvalidCheckpoint(path=path, reason=f"tensor {name} has values that are not finite")
