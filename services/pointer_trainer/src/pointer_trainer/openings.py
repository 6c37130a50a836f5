"""The openings of a dataset's test split: who looked, when, and for which checkpoints. Each look makes the next worth less."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from leverplus.data_root import DataRoot
from leverplus.deployments import deletions_locked_out
from leverplus.errors import Conflict, InvalidConfig, Unavailable


class Opening(BaseModel):
    """One final evaluation. `dataset_sha256`: of the dataset as it was then. `at`: ISO 8601, UTC."""

    job_id: str
    at: str
    by: str
    split: str
    queries: int
    checkpoints: list[str]
    dataset_sha256: str


logger = logging.getLogger(__name__)

_TRIES = 20
"""Of hosts that record an opening at one moment each but one finds the record replaced, and adds its line again."""


def is_test(split: str) -> bool:
    """Whether a split may be read by a final evaluation only: test, test-dev and the like."""
    return split.lower().startswith("test")


def read_openings(root: DataRoot, dataset: str) -> list[Opening]:
    """All of a dataset, oldest first, whichever host recorded them. InvalidConfig for a line that is JSON and no opening."""
    path = root.openings(dataset)
    root.newest(path)
    return _read(path)


def list_openings(root: DataRoot) -> dict[str, list[Opening]]:
    """Dataset -> its openings; those that were never opened are left out. While the store is away, what is known here."""
    folder = root.path / "openings"
    try:
        for name in () if root.shared is None else root.shared.names(folder):
            root.newest(folder / name)
    except Unavailable as exc:
        logger.warning("openings are listed as they are known here: %s", exc)
    return {path.stem: _read(path) for path in sorted(folder.glob("[!.]*.ndjson"))}


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
    """Adds a line, on the disk before anything of the split is scored. A job that runs again is recorded once."""
    path = root.openings(dataset)
    opening: dict[str, Any] = {
        "job_id": job_id,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "by": by,
        "split": split,
        "queries": queries,
        "checkpoints": list(checkpoints),
        "dataset_sha256": dataset_sha256,
    }
    with deletions_locked_out(root):
        for left in reversed(range(_TRIES)):
            version = root.newest(path)
            if any(known.job_id == job_id for known in _read(path)):
                return
            before = path.read_bytes() if path.is_file() else b""
            try:
                # A line of its own also after one that was cut short.
                root.replace(path, before + b"\n" * bool(before) + orjson.dumps(opening), version=version)
                return
            except Conflict:
                if not left:
                    raise


def opened_note(openings: Sequence[Opening]) -> str:
    """How often, for a report."""
    if not openings:
        return "Its test split has not been opened."
    last, count = openings[-1], len(openings)
    for_what = ", ".join(last.checkpoints) or "the baselines"
    times = "once" if count == 1 else f"{count} times"
    by = " ".join(last.by.split())
    return f"Its test split has been opened {times}, last by {by} on {last.at[:16]} UTC for {for_what}."


def _read(path: Path) -> list[Opening]:
    found: list[Opening] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), start=1):
        try:
            found.append(Opening.model_validate(orjson.loads(line)))
        except orjson.JSONDecodeError:
            continue  # cut short by a kill, before anything was scored
        except ValidationError as exc:
            fault = exc.errors()[0]
            reason = (
                f"no opening: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; restore the file, for what it records counts"
            )
            raise InvalidConfig(field=f"{path}, line {number}", reason=reason) from exc
    return found
