"""Deleting checkpoints and run directories, of which nothing that is needed goes.

What goes loses its name first, under the lock that promotions and new jobs take too, and its files after: nobody finds it
half deleted, and nothing comes to rest on it in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from leverplus.checkpoints import CheckpointInfo, list_checkpoints
from leverplus.data_root import DataRoot
from leverplus.deployments import deletions_locked_out, deployed_as
from leverplus.errors import Conflict, InvalidConfig, NotFound
from leverplus.files import empty_trash, folder_bytes, set_aside
from leverplus.store import Job, JobStore
from leverplus.store.jobs import TERMINAL
from pointer_trainer.children import LARGEST_FAMILY

SCORE = "held_out_expected_accuracy"


@dataclass(frozen=True)
class Deleted:
    """What went, or would go, and what it took on the disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Kept:
    name: str
    reason: str


def delete_checkpoint(root: DataRoot, jobs: JobStore, checkpoint_id: str, *, dry_run: bool = False) -> Deleted:
    """NotFound without one; Conflict naming the alias or job that holds it."""
    folder = root.checkpoint(checkpoint_id)
    with deletions_locked_out(root):
        _require_folder(folder, "checkpoint", "GET /checkpoints lists them")
        if reason := _holder(checkpoint_id, deployed_as(root), jobs.unfinished()):
            raise Conflict(f"checkpoint {checkpoint_id} is needed: {reason}")
        deleted = _take(root, folder, dry_run)
    empty_trash(folder.parent)
    return deleted


def delete_run(root: DataRoot, jobs: JobStore, job_id: str, *, dry_run: bool = False) -> Deleted:
    """The run directory of a job that has ended; its row stays. A failed one that is resumed begins anew.

    NotFound without job or directory; Conflict where the job, or one that it belongs to or that belongs to it, has not ended.
    """
    folder = root.run(job_id)
    with deletions_locked_out(root):
        job = jobs.get(job_id)
        family = [job, *jobs.list(parent=job_id, limit=LARGEST_FAMILY), *([jobs.get(job.parent)] if job.parent else [])]
        if unfinished := next((one for one in family if one.status not in TERMINAL), None):
            raise Conflict(f"the run of {job_id} is needed: job {unfinished.id} is {unfinished.status}; cancel it, or wait")
        root.newest(folder)
        _require_folder(folder, "run directory", f"that of job {job_id} was deleted, or it never ran")
        deleted = _take(root, folder, dry_run)
    empty_trash(folder.parent)
    return deleted


def prune_checkpoints(
    root: DataRoot,
    jobs: JobStore,
    *,
    keep_best: int | None,
    created_before: datetime | None,
    spared: Mapping[str, str] | None = None,
    dry_run: bool = False,
) -> tuple[list[Deleted], list[Kept]]:
    """Deletes the checkpoints that lie behind the `keep_best` best of their dataset and were created before that time.

    A condition that is None is not looked at; InvalidConfig where both are. Best is by held-out expected accuracy. What is
    deployed or needed by a job stays, as do those in `spared` (id -> why) and all of which the conditions cannot be told. Also
    returned is what stays for such a reason.
    """
    if keep_best is None and created_before is None:
        raise InvalidConfig(field="keep_best and older_than_days", reason="neither is stated, so that all would go; state one")
    root.bring_all("checkpoints")
    infos, broken = list_checkpoints(root)
    chosen, kept = _behind_the_best(infos, keep_best)
    kept += [Kept(name, f"it cannot be read: {error}") for name, error in broken.items()]
    deleted: list[Deleted] = []
    with deletions_locked_out(root):
        deployed, unfinished = deployed_as(root), jobs.unfinished()
        for info in chosen:
            name = info.checkpoint_id
            folder = root.checkpoint(name)
            created = _created(info)
            if (created_before and created and created >= created_before) or not folder.is_dir():
                continue
            unknown = "when it was made is unknown" if created_before and created is None else None
            if reason := unknown or _holder(name, deployed, unfinished) or (spared or {}).get(name):
                kept.append(Kept(name, reason))
            else:
                deleted.append(_take(root, folder, dry_run))
    empty_trash(root.path / "checkpoints")
    return deleted, kept


def _behind_the_best(infos: Sequence[CheckpointInfo], keep_best: int | None) -> tuple[list[CheckpointInfo], list[Kept]]:
    """Those that are none of the best, oldest first, and those that cannot be compared."""
    if keep_best is None:
        return list(infos), []
    kept = [Kept(info.checkpoint_id, f"its {SCORE} is unknown") for info in infos if info.metrics.get(SCORE) is None]
    by_dataset: dict[str, list[CheckpointInfo]] = {}
    for info in infos:
        if info.metrics.get(SCORE) is not None:
            by_dataset.setdefault(info.dataset, []).append(info)
    best = {
        info.checkpoint_id
        for same in by_dataset.values()
        for info in sorted(same, key=lambda info: -info.metrics[SCORE])[:keep_best]
    }
    return [info for info in infos if info.metrics.get(SCORE) is not None and info.checkpoint_id not in best], kept


def _created(info: CheckpointInfo) -> datetime | None:
    try:
        created = datetime.fromisoformat(info.created_at)
    except ValueError:
        return None
    return created if created.tzinfo is not None else None


def _holder(checkpoint_id: str, deployed: Mapping[str, str], unfinished: Sequence[Job]) -> str | None:
    """What needs a checkpoint: an alias, the job that makes it, or one whose config names it wherever that is."""
    if checkpoint_id in deployed:
        return f"{deployed[checkpoint_id]}; promote another first"
    for job in unfinished:
        own = f"ckpt-{job.id.removeprefix('job-')}"
        if checkpoint_id == own or checkpoint_id.startswith(f"{own}-") or checkpoint_id in _texts(job.config):
            return f"job {job.id} ({job.kind}) is {job.status}; cancel it, or wait"
    return None


def _texts(value: Any) -> Iterator[str]:
    """All strings that JSON holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        inner = cast("list[Any] | dict[str, Any]", value)
        for each in inner.values() if isinstance(inner, dict) else inner:
            yield from _texts(each)


def _require_folder(folder: Path, what: str, hint: str) -> None:
    if not folder.is_dir():
        raise NotFound(what=what, name=folder.name, hint=hint)


def _take(root: DataRoot, folder: Path, dry_run: bool) -> Deleted:
    deleted = Deleted(folder.name, folder_bytes(folder))
    if not dry_run:
        # First there: what is gone here only would come back.
        root.unpublish(folder)
        set_aside(folder)
    return deleted
