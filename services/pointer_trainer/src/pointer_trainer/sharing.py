"""What a job leaves for other hosts, where files are shared: its products before it has succeeded, its run directory all along.

A job's products are named after it, so they are found by their names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leverplus.data_root import DataRoot
from leverplus.errors import LeverPlusError
from leverplus.store import LeaseLost
from pointer_trainer.context import JobContext
from pointer_trainer.metrics_writers import End

logger = logging.getLogger(__name__)


def take_up(root: DataRoot, run_folder: Path) -> None:
    """Brings what an earlier run of a job left on another host. Where it cannot be had, the job begins anew."""
    try:
        root.newest(run_folder)
    except LeverPlusError as exc:
        logger.warning("%s: what an earlier run left is not looked at: %s", run_folder.name, exc)


def share_products(context: JobContext) -> None:
    """Publishes checkpoints and RL data of the job, and its run directory, which the promotion gate reads. Where there are RL
    data, its shards go.

    Raises what `DataRoot.publish` raises, and LeaseLost.
    """
    root = context.data_root
    if root.shared is None:
        return
    own = f"ckpt-{context.suffix}"
    checkpoints = root.path / "checkpoints"
    made: list[str] = []
    # Behind the id of a child stands a number, behind that of a phase a word.
    for path in (
        checkpoints / own,
        *sorted(checkpoints.glob(f"{own}-[a-z]*")),
        root.path / "rl-data" / f"rl-{context.suffix}.ndjson",
    ):
        if path.exists():
            context.fence()
            root.publish(path)
            made.append(path.suffix)
    _share_run(context, root)
    if ".ndjson" in made:
        root.unpublish(root.shards(context.job_id))


def share_run(context: JobContext) -> None:
    """Shares the run directory as it is now, but for shards, which are shared one by one. That it cannot be is told in the log:
    no work is given up for it. Raises LeaseLost."""
    try:
        _share_run(context, context.data_root.patient(0.0))
    except LeaseLost:
        raise
    except LeverPlusError as exc:
        context.logger.warning("the run directory is not shared: %s", exc)


def _share_run(context: JobContext, root: DataRoot) -> None:
    if root.shared is not None:
        context.fence()
        root.shared.publish_newest(context.run_folder, without=(root.shards(context.job_id).name,))


def share_shard(context: JobContext, path: Path, *, keep: bool) -> None:
    """Publishes a shard and, unless it is still looked at, deletes it here: who puts the RL data together fetches all of them."""
    if context.data_root.shared is not None and path.exists():
        context.fence()
        context.data_root.publish(path)
        if not keep:
            path.unlink()


class StateSharer:
    """Shares a training's state after every epoch, with its metrics: another host goes on from there."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def write(self, row: Mapping[str, Any]) -> None:
        share_run(self._context)

    def close(self, end: End) -> None:
        """Nothing waits."""
