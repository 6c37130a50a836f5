"""What lies in the data folder, and what a retention would free."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from leverplus.disk import usage
from pointer_trainer.housekeeping import apply_retention, remove_training_states
from pointer_trainer.settings import LONGEST_DAYS
from pointer_trainer.state import State

router = APIRouter(tags=["disk"])


class KindUsage(BaseModel):
    """`retention_bytes`: of them, what would go; null where no retention is stated."""

    kind: str
    files: int
    bytes: int
    retention_bytes: int | None


class DiskUsage(BaseModel):
    """`total_bytes` and `free_bytes` are the disk's."""

    kinds: list[KindUsage]
    retention_days: float | None
    total_bytes: int
    free_bytes: int


@router.get("/disk")
def disk(
    state: State,
    retention_days: Annotated[
        float | None, Query(gt=0, le=LONGEST_DAYS, description="default: LEVERPLUS_RETENTION_DAYS of the service")
    ] = None,
) -> DiskUsage:
    """What each kind of data takes, and what of it a retention of so many days would free now. Deletes nothing."""
    root = state.data_root
    days = retention_days or state.settings.retention_days
    goes: dict[str, int] = {}
    if days is not None:
        before = datetime.now(UTC) - timedelta(days=days)
        goes["training states"] = sum(gone.bytes for gone in remove_training_states(root, state.jobs, before, dry_run=True))
        goes["checkpoints"] = sum(gone.bytes for gone in apply_retention(root, state.jobs, before, dry_run=True))
    room = shutil.disk_usage(root.path)
    return DiskUsage(
        kinds=[
            KindUsage(
                kind=kind, files=found.files, bytes=found.bytes, retention_bytes=None if days is None else goes.get(kind, 0)
            )
            for kind, found in usage(root).items()
        ],
        retention_days=days,
        total_bytes=room.total,
        free_bytes=room.free,
    )
