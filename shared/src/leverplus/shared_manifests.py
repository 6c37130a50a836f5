"""What an artefact in a store is made of: the manifest that is written last and names its objects by their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from leverplus.files import file_sha256

FORMAT = "leverplus-shared-1"


@dataclass(frozen=True)
class Manifest:
    """`files`: path below the artefact (of a file: its name) -> sha256, bytes and object. `version` counts from 1."""

    version: int
    is_folder: bool
    files: Mapping[str, Mapping[str, Any]]

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())

    def dumped(self) -> bytes:
        return orjson.dumps({"format": FORMAT, "is_folder": self.is_folder, "files": dict(self.files)})


def parse_manifest(content: bytes, version: int) -> Manifest:
    """ValueError, saying what is wrong, for what is none."""
    try:
        value = orjson.loads(content)
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, expected {FORMAT!r}")
        files = {str(name): dict(entry) for name, entry in value["files"].items()}
        for name, entry in files.items():
            _check_entry(name, entry)
        return Manifest(version, bool(value["is_folder"]), files)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ValueError(f"manifest {version} is none: {exc}") from exc


def files_of(path: Path) -> dict[str, Path]:
    """What an artefact is made of; hidden files are others' business."""
    if path.is_file():
        return {path.name: path}
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    relative = ((file.relative_to(path), file) for file in found)
    return {name.as_posix(): file for name, file in relative if not any(part.startswith(".") for part in name.parts)}


def entry_of(file: Path | bytes, *, version: int) -> dict[str, Any]:
    """A manifest's entry of a file, or of what is to be in it."""
    is_path = isinstance(file, Path)
    digest = file_sha256(file) if is_path else hashlib.sha256(file).hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size if is_path else len(file), "object": f"{digest}.{version}"}


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    """ValueError for a name that leads out of the artefact, KeyError where a field is missing."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "/" in entry["object"]:
        raise ValueError(f"{name!r} or its object leads out of it")
    if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
        raise ValueError(f"what it says of {name!r}")
