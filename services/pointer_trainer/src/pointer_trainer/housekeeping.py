"""What goes by itself: what killed requests left and, where LEVERPLUS_RETENTION_DAYS says so, what was not needed for long."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leverplus.checkpoints import list_checkpoints
from leverplus.data_root import DataRoot
from leverplus.deployments import deletions_locked_out, ever_promoted
from leverplus.errors import NotFound
from leverplus.files import empty_trash, remove_left_over, set_aside
from leverplus.store import Job, JobStore
from leverplus.store.jobs import TERMINAL
from pointer_trainer.deletion import Deleted, prune_checkpoints

HOUSEKEEPING_EVERY_S = 600.0
ORPHAN_AGE_S = 3600.0
"""A run directory as old as this whose job has no row never gets one: its request is over."""

UNFINISHED_AGE_S = 3600.0
"""A temporary file unchanged for this long has no writer any more. Workers elsewhere write here too: pids do not tell."""

logger = logging.getLogger(__name__)


def keep_house(root: DataRoot, jobs: JobStore, *, retention_days: float | None) -> None:
    """One round: orphans, trash and unfinished files always, the rest only with a retention. What goes is logged."""
    for folder in remove_orphans(root, jobs):
        logger.info("removed run directory %s: its job was never made", folder.name)
    if retention_days is not None:
        before = datetime.now(UTC) - timedelta(days=retention_days)
        for deleted in remove_training_states(root, jobs, before):
            logger.info("removed training state %s: its job ended over %g days ago", deleted.name, retention_days)
        for deleted in apply_retention(root, jobs, before):
            logger.info("removed checkpoint %s (%d bytes), over %g days old", deleted.name, deleted.bytes, retention_days)
    for parent in ("runs", "checkpoints"):
        empty_trash(root.path / parent)
    for path in remove_left_over(root.path, older_than_s=UNFINISHED_AGE_S, all_writers_here=False):
        logger.info("removed %s, which a killed process had left behind", path.relative_to(root.path))


def remove_orphans(root: DataRoot, jobs: JobStore, *, older_than_s: float = ORPHAN_AGE_S) -> list[Path]:
    """Run directories that a request made before it could make its job's row, and in which nothing ran since.

    A directory with anything but a config in it stays, whatever the database says: it may be another database's.
    """
    removed: list[Path] = []
    for folder in (root.path / "runs").glob("job-*"):
        names = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}
        if names <= {"config.json"} and time.time() - folder.stat().st_mtime > older_than_s and _row(jobs, folder.name) is None:
            set_aside(folder)
            removed.append(folder)
    return removed


def remove_training_states(root: DataRoot, jobs: JobStore, before: datetime, *, dry_run: bool = False) -> list[Deleted]:
    """States of jobs that ended, without success or they had none, before that time: resumed they begin anew."""
    removed: list[Deleted] = []
    for path in (root.path / "runs").glob("job-*/state-*.safetensors"):
        with deletions_locked_out(root):
            job = _row(jobs, path.parent.name)
            if job is None or job.status not in TERMINAL or (job.finished_at or 0.0) >= before.timestamp():
                continue
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            if not dry_run:
                path.unlink(missing_ok=True)
        removed.append(Deleted(str(path), size))
    return removed


def apply_retention(root: DataRoot, jobs: JobStore, before: datetime, *, dry_run: bool = False) -> list[Deleted]:
    """Deletes checkpoints that jobs made before that time and that were never promoted; imported ones stay."""
    promoted = ever_promoted(root)
    infos, _ = list_checkpoints(root)
    spared = dict.fromkeys(promoted, "it was promoted once")
    spared |= {info.checkpoint_id: "it was imported" for info in infos if not info.rl_data}
    return prune_checkpoints(root, jobs, keep_best=None, created_before=before, spared=spared, dry_run=dry_run)[0]


def _row(jobs: JobStore, job_id: str) -> Job | None:
    try:
        return jobs.get(job_id)
    except NotFound:
        return None
