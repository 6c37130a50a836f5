"""The openings of a dataset's test split: who looked, when, and for which checkpoints. Each look makes the next worth less."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import BaseModel

from leverplus.data_root import DataRoot


class Opening(BaseModel):
    """One final evaluation. `dataset_sha256`: of the dataset as it was then. `at`: ISO 8601, UTC."""

    job_id: str
    at: str
    by: str
    split: str
    queries: int
    checkpoints: list[str]
    dataset_sha256: str


def is_test(split: str) -> bool:
    """Whether a split may be read by a final evaluation only: test, test-dev and the like."""
    return split.lower().startswith("test")


def read_openings(root: DataRoot, dataset: str) -> list[Opening]:
    """All of a dataset, oldest first."""
    path = root.openings(dataset)
    found: list[Opening] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(orjson.JSONDecodeError):  # cut short by a kill, before anything was scored
            found.append(Opening.model_validate(orjson.loads(line)))
    return found


def list_openings(root: DataRoot) -> dict[str, list[Opening]]:
    """Dataset -> its openings; those that were never opened are left out."""
    paths = sorted((root.path / "openings").glob("[!.]*.ndjson"))
    return {path.stem: read_openings(root, path.stem) for path in paths}


def record_opening(
    root: DataRoot,
    dataset: str,
    *,
    job_id: str,
    by: str,
    split: str,
    queries: int,
    checkpoints: Sequence[str],
    dataset_sha256: str,
) -> None:
    """Appends a line, on the disk before anything of the split is scored. A job that runs again is recorded once."""
    path = root.openings(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if any(opening.job_id == job_id for opening in read_openings(root, dataset)):
            return
        opening: dict[str, Any] = {
            "job_id": job_id,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "by": by,
            "split": split,
            "queries": queries,
            "checkpoints": list(checkpoints),
            "dataset_sha256": dataset_sha256,
        }
        # A line of its own also after one that was cut short.
        stream.write(b"\n" * (stream.tell() > 0) + orjson.dumps(opening))
        stream.flush()
        os.fsync(stream.fileno())


def opened_note(openings: Sequence[Opening]) -> str:
    """How often, for a report."""
    if not openings:
        return "Its test split has not been opened."
    last, count = openings[-1], len(openings)
    for_what = ", ".join(last.checkpoints) or "the baselines"
    times = "once" if count == 1 else f"{count} times"
    return f"Its test split has been opened {times}, last by {last.by} on {last.at[:16]} UTC for {for_what}."
