"""What a data folder takes on the disk, by kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from leverplus.data_root import DataRoot

Kind = Literal[
    "datasets",
    "embeddings",
    "scores and jobs",
    "rl-data",
    "checkpoints",
    "indexes",
    "training states",
    "run directories",
    "deployments",
    "logs",
    "broker",
    "left over",
    "other",
]
"""`scores and jobs`: the database, where it is SQLite's. `run directories`: logs, metrics, curves and reports of jobs, without
`training states`. `left over`: what is being written, or was by a process that was killed."""

_TOP: dict[str, Kind] = {
    "datasets": "datasets",
    "embeddings": "embeddings",
    "rl-data": "rl-data",
    "checkpoints": "checkpoints",
    "runs": "run directories",
    "deployments": "deployments",
    "openings": "deployments",
    "logs": "logs",
    "valkey": "broker",
}


@dataclass
class Usage:
    files: int = 0
    bytes: int = 0


def usage(root: DataRoot) -> dict[Kind, Usage]:
    """Files and their sizes, for every kind. A file that goes meanwhile counts or not; one with several names counts once."""
    found: dict[Kind, Usage] = {kind: Usage() for kind in get_args(Kind)}
    seen: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(root.path):
        place = Path(folder)
        for name in names:
            path = place / name
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if (same := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(same)
            entry = found[_kind(path.relative_to(root.path).parts)]
            entry.files += 1
            entry.bytes += status.st_size
    return found


def _kind(parts: tuple[str, ...]) -> Kind:
    if any(part.startswith(".") and part != ".lock" for part in parts):
        return "left over"
    if len(parts) == 1:
        return "scores and jobs" if parts[0].startswith("store.sqlite") else "other"
    if parts[0] == "checkpoints" and any(part.startswith("index-") for part in parts[2:-1]):
        return "indexes"
    if parts[0] == "runs" and parts[-1].startswith("state-") and parts[-1].endswith(".safetensors"):
        return "training states"
    return _TOP.get(parts[0], "other")
