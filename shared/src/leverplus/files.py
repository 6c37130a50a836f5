"""Files that are either whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

Fence = Callable[[], None]
"""Called when all is written and only the rename is left; raises where the writer may no longer write."""

_TRASH = ".trash"
_TEMPORARY = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.tmp")


def temporary_name(path: Path) -> Path:
    """A name beside `path` that says who writes there: `remove_left_over` finds it when that process is gone."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def unfenced() -> None:
    """The fence of a run that no other can take over: one outside of the job store."""


@contextmanager
def atomic_file(path: Path, *, fence: Fence | None = None) -> Generator[BinaryIO]:
    """A binary file that appears under `path` only when the block and `fence` end without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if fence is not None:
            fence()
        temporary.replace(path)
    except BaseException as exc:
        temporary.unlink(missing_ok=True)
        name_file(exc, path)
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, fence: Fence | None = None) -> Generator[Path]:
    """A folder that appears under `path` only when the block and `fence` end without an error; `path` must not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if fence is not None:
            fence()
        temporary.rename(path)
    except BaseException as exc:
        remove_folder(temporary)
        name_file(exc, path)
        raise
    _sync_folder(path.parent)


def name_file(error: BaseException, path: Path) -> None:
    """A failing write does not say to which file: a full disk is then reported with the path that was being made."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def remove_folder(path: Path) -> None:
    """Deletes a folder and what is in it; a missing one is no error."""
    import shutil

    if path.exists():
        shutil.rmtree(path)


def set_aside(folder: Path) -> Path:
    """Takes the folder's name away at once, so that nobody finds it half deleted; where it lies until `empty_trash`."""
    aside = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}{_TRASH}")
    folder.rename(aside)
    _sync_folder(folder.parent)
    return aside


def empty_trash(parent: Path) -> None:
    """Deletes what was set aside below `parent`, by whomever; several may do so at once."""
    for folder in parent.glob(f".*{_TRASH}"):
        with suppress(FileNotFoundError):  # another deletes it
            remove_folder(folder)


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of the files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_left_over(root: Path, *, older_than_s: float = 60.0, all_writers_here: bool = True) -> list[Path]:
    """Deletes the temporary files and folders of writers that were killed, at most three levels below `root`; their paths.

    A writer is gone if no process of this machine has the pid in the name, and nothing was changed for `older_than_s`. Where
    writers may be in other containers or machines, not `all_writers_here`, the pid says nothing: age alone decides.
    """
    removed: list[Path] = []
    for pattern in (".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
        for path in root.glob(pattern):
            found = _TEMPORARY.fullmatch(path.name)
            if found is None or (all_writers_here and _is_alive(int(found[1]))):
                continue
            with suppress(FileNotFoundError):  # its writer lives and is done, or another removes it
                if time.time() - _last_change(path) < older_than_s:
                    continue
                if path.is_dir():
                    remove_folder(path)
                else:
                    path.unlink()
                removed.append(path)
    return removed


def _last_change(path: Path) -> float:
    """When the path or anything in it was last changed: not its mtime, which a copy may have from its original."""
    return max(each.stat().st_ctime for each in (path, *path.rglob("*")))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, fence: Fence | None = None) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_file(path, fence=fence) as stream:
        stream.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
