"""Which checkpoint an alias serves: `deployments/<alias>.json`, replaced whole, with its predecessor inside.

The trainer is the only writer; the selector re-reads the file when it changes. Where files are shared with other hosts, what is
in the store counts, and is written first. `deployments/history.ndjson` names every
checkpoint that was ever promoted, so that none of them goes by itself.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson

from leverplus.data_root import DataRoot
from leverplus.errors import Conflict, InvalidConfig, NotFound, shorten
from leverplus.files import atomic_file

logger = logging.getLogger(__name__)

DEFAULT_ALIAS = "production"
_HISTORY = "history.ndjson"
_REQUIRED = ("alias", "checkpoint_id", "promoted_at", "by", "reason")


@dataclass(frozen=True)
class Deployment:
    """A promoted checkpoint. `promoted_at`: ISO 8601, UTC. `gate`: the gate's result; None where it was overridden, for `reason`.
    `health`: what `leverplus.selector_health` found of it then, None where nobody looked.

    `predecessor`: the fields of the deployment before this one, without its own predecessor; None for the first.
    """

    alias: str
    checkpoint_id: str
    promoted_at: str
    by: str
    reason: str
    gate: dict[str, Any] | None = None
    predecessor: dict[str, Any] | None = None
    health: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_deployment(root: DataRoot, alias: str) -> Deployment:
    """The deployment of `alias`; NotFound saying how to promote, InvalidConfig for a file that is none."""
    path = root.deployment(alias)
    if not path.is_file():
        hint = "promote a checkpoint first: `leverplus promote <checkpoint>` or POST /checkpoints/{id}/promote at the trainer"
        raise NotFound(what="deployment", name=alias, hint=hint)
    return _read(path, alias)


def list_deployments(root: DataRoot) -> list[Deployment]:
    """Every deployment, by alias."""
    return [_read(path, path.stem) for path in sorted((root.path / "deployments").glob("[!.]*.json"))]


def promote(
    root: DataRoot,
    alias: str,
    checkpoint_id: str,
    *,
    by: str,
    reason: str,
    gate: Mapping[str, Any] | None = None,
    health: Mapping[str, Any] | None = None,
) -> Deployment:
    """Makes `alias` serve the checkpoint and returns what was written.

    NotFound for a checkpoint that is not there; InvalidConfig without a gate's result and without a reason; Conflict where the
    gate compared with another checkpoint than `alias` serves by now. Promoting what is already served records the new reason
    and keeps the predecessor, so that a roll-back still leads somewhere else.

    A file that is no deployment is InvalidConfig for a gate's result, and without one replaced: there is no predecessor then, and
    what it held stays beside it as `<alias>.json.broken`.
    """
    if gate is None and not reason.strip():
        raise InvalidConfig(field="reason", reason="empty; a promotion without a gate's result needs the reason for it")
    path = root.deployment(alias)
    with deletions_locked_out(root):
        version = root.newest(path)
        _require_checkpoint(root, checkpoint_id)
        try:
            current = _read(path, alias) if path.is_file() else None
        except InvalidConfig as exc:
            if gate is not None:
                raise
            _keep_broken(path, exc)
            current = None
        _require_incumbent(gate, checkpoint_id, current)
        predecessor = None
        if current is not None:
            predecessor = current.predecessor if current.checkpoint_id == checkpoint_id else _without_predecessor(current)
        found = dict(gate) if gate is not None else None, predecessor, dict(health) if health is not None else None
        deployment = Deployment(alias, checkpoint_id, _now(), by, reason, *found)
        # First: what is in the history without having been served is only kept longer.
        _remember(root, deployment)
        _write(root, deployment, version)
    return deployment


def _require_incumbent(gate: Mapping[str, Any] | None, checkpoint_id: str, current: Deployment | None) -> None:
    if gate is None or "incumbent" not in gate:
        return
    served = None if current is None or current.checkpoint_id == checkpoint_id else current.checkpoint_id
    if served != gate["incumbent"]:
        raise Conflict(
            f"the gate compared {checkpoint_id} with {gate['incumbent']}, but {served} is served by now: promote once more"
        )


def rollback(root: DataRoot, alias: str, by: str) -> Deployment:
    """Swaps the deployment with its predecessor; a second roll-back swaps them back.

    NotFound without a deployment or when the predecessor's checkpoint was deleted; Conflict without a predecessor;
    InvalidConfig for a file that is no deployment: it does not say what was served before.
    """
    path = root.deployment(alias)
    with deletions_locked_out(root):
        version = root.newest(path)
        current = read_deployment(root, alias)
        if current.predecessor is None:
            raise Conflict(
                f"deployment {alias!r} ({current.checkpoint_id}) has no predecessor to roll back to; promote another checkpoint"
            )
        earlier = Deployment(**current.predecessor)
        _require_checkpoint(root, earlier.checkpoint_id)
        reason = f"rolled back from {current.checkpoint_id}"
        found = earlier.gate, _without_predecessor(current), earlier.health
        deployment = Deployment(alias, earlier.checkpoint_id, _now(), by, reason, *found)
        _write(root, deployment, version)
    return deployment


def refresh_deployments(root: DataRoot) -> None:
    """Brings every deployment that hosts share, and the history. Raises as `SharedFiles.refresh` does."""
    for name in [] if root.shared is None else root.shared.names(root.path / "deployments"):
        root.newest(root.path / "deployments" / name)


def parse_deployment(content: bytes, path: Path, alias: str) -> Deployment:
    """The deployment of `alias` that a file's contents describe; InvalidConfig, naming `path`, where they describe none."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as exc:
        raise _no_deployment(path, f"not JSON: {exc}") from exc
    deployment = _checked(path, value)
    if deployment.alias != alias:
        raise _no_deployment(path, f"holds alias {deployment.alias!r}, expected {alias!r}")
    if deployment.predecessor is not None:
        _checked(path, deployment.predecessor, "predecessor.")
    return deployment


def _write(root: DataRoot, deployment: Deployment, version: int) -> None:
    content = orjson.dumps(deployment.to_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    root.replace(root.deployment(deployment.alias), content, version=version)


def _read(path: Path, alias: str) -> Deployment:
    return parse_deployment(path.read_bytes(), path, alias)


def _keep_broken(path: Path, fault: InvalidConfig) -> None:
    kept = _broken(path)
    with atomic_file(kept) as stream:
        stream.write(path.read_bytes())
    logger.warning("replaced, and kept as %s: %s", kept.name, fault)


def _broken(path: Path) -> Path:
    return path.with_name(f"{path.name}.broken")


def _checked(path: Path, value: Any, prefix: str = "") -> Deployment:
    """The deployment that JSON describes, every field of its type."""
    if not isinstance(value, dict):
        raise _no_deployment(path, f"it is {shorten(repr(value))}, expected an object")
    given = cast("dict[str, Any]", value)
    if missing := [name for name in _REQUIRED if name not in given]:
        raise _no_deployment(path, f"{prefix}{missing[0]} is missing")
    if unknown := sorted(set(given) - {field.name for field in fields(Deployment)}):
        raise _no_deployment(path, f"{prefix}{shorten(unknown[0])} is no field of one")
    for name in _REQUIRED:
        if not isinstance(found := given[name], str):
            raise _no_deployment(path, f"{prefix}{name} is {shorten(repr(found))}, expected a string")
    for name in ("gate", "predecessor", "health"):
        if not isinstance(found := given.get(name), dict | None):
            raise _no_deployment(path, f"{prefix}{name} is {shorten(repr(found))}, expected an object or null")
    return Deployment(**given)


def _no_deployment(path: Path, reason: str) -> InvalidConfig:
    way_out = f"promote a checkpoint with an override and a reason, which replaces the file and keeps it as {_broken(path).name}"
    return InvalidConfig(field=str(path), reason=f"not a deployment: {reason}; {way_out}")


def _require_checkpoint(root: DataRoot, checkpoint_id: str) -> None:
    if not (root.checkpoint(checkpoint_id) / "checkpoint.json").is_file():
        raise NotFound(what="checkpoint", name=checkpoint_id, hint=f"{root.path / 'checkpoints'} holds those that exist")


def _without_predecessor(deployment: Deployment) -> dict[str, Any]:
    value = deployment.to_json()
    del value["predecessor"]
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def deployed_as(root: DataRoot) -> dict[str, str]:
    """Checkpoint -> what holds it there: an alias that serves it or would roll back to it.

    InvalidConfig where a deployment cannot be read: then it is not known what it holds.
    """
    held: dict[str, str] = {}
    for deployment in list_deployments(root):
        if deployment.predecessor is not None:
            alias = deployment.alias
            held.setdefault(deployment.predecessor["checkpoint_id"], f"alias {alias!r} would roll back to it")
        held[deployment.checkpoint_id] = f"alias {deployment.alias!r} serves it"
    return held


def ever_promoted(root: DataRoot) -> frozenset[str]:
    """Every checkpoint in the history, which begins with the first promotion since there is one."""
    path = root.path / "deployments" / _HISTORY
    found: set[str] = set()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(orjson.JSONDecodeError):  # cut short by a kill, before the promotion
            found.add(orjson.loads(line)["checkpoint_id"])
    return frozenset(found)


def _remember(root: DataRoot, deployment: Deployment) -> None:
    value = deployment.to_json()
    line = {name: value[name] for name in _REQUIRED}
    path = root.path / "deployments" / _HISTORY
    version = root.newest(path)
    before = path.read_bytes() if path.is_file() else b""
    # A line of its own also after one that was cut short.
    root.replace(path, before + b"\n" * bool(before) + orjson.dumps(line), version=version)


@contextmanager
def deletions_locked_out(root: DataRoot) -> Generator[None]:
    """One at a time, over all processes: who promotes, deletes, or makes a job that rests on what could be deleted."""
    folder = root.path / "deployments"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
