"""A data folder as one file; `leverplus.restore` reads it.

A tar archive: `backup.json`, what it is; the files, and `store.sqlite` where that is the database; `checksums.json`, size and
SHA-256 of each. The last one is written when all else is: an archive without it was cut short.

Order is what makes it whole. Files are there before a row names them, so the database is copied first and the files after it, and
meanwhile nothing is deleted. What came between is in files that no row of the copy names yet, as after a kill.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tarfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson

from leverplus import __version__
from leverplus.data_root import KINDS, DataRoot
from leverplus.deployments import deletions_locked_out
from leverplus.errors import NotFound, Unavailable
from leverplus.files import remove_folder, temporary_name

FORMAT = 1
HEADER = "backup.json"
CHECKSUMS = "checksums.json"
DATABASE = "store.sqlite"
SINGLE = frozenset({DATABASE, "demo-imported.json"})
"""Files of the data folder itself."""
_BUSY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Backup:
    """`made_at`: when the database was copied, ISO 8601, UTC. With `postgresql` the database is not in it."""

    format: int
    made_at: str
    code_version: str
    database: Literal["sqlite", "postgresql"]
    files: int
    bytes: int


def write_backup(root: DataRoot, stream: BinaryIO, *, database: Path | None) -> Backup:
    """Writes the data folder to `stream`, while services run on it. NotFound where there is no such folder;
    Unavailable where the database cannot be copied, which takes room in that folder.

    `database` is SQLite's file; None for PostgreSQL, which is kept by its own means.

    Deletions, promotions and starts of jobs that rest on a checkpoint wait for the copy of the database, not for the archive.
    """
    if not root.path.is_dir():
        raise NotFound(what="data folder", name=str(root.path), hint="name one with --data")
    kind = "postgresql" if database is None else "sqlite"
    with _snapshot(root, database) as (folder, made_at):
        checksums: dict[str, tuple[int, str]] = {}
        header = {"format": FORMAT, "made_at": made_at, "code_version": __version__, "database": kind}
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _add_json(archive, HEADER, header)
            for name, path in _files(root.path, folder):
                checksums[name] = _add(archive, name, path)
            _add_json(archive, CHECKSUMS, checksums)
    return Backup(FORMAT, made_at, __version__, kind, len(checksums), sum(size for size, _ in checksums.values()))


@contextmanager
def _snapshot(root: DataRoot, database: Path | None) -> Generator[tuple[Path, str]]:
    """A folder of the database's copy and of all that could be deleted or replaced, linked rather than copied."""
    folder = temporary_name(root.path / "backup")
    folder.mkdir()
    try:
        with deletions_locked_out(root):
            made_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            if database is not None and database.is_file():
                _copy_database(database, folder / DATABASE)
            for kind in KINDS:
                if kind != "datasets":
                    _link(root.path / kind, folder / kind)
        yield folder, made_at
    finally:
        remove_folder(folder)


def _copy_database(source: Path, target: Path) -> None:
    """One state of it, however many write meanwhile; one file, without a log beside it."""
    try:
        with (
            closing(sqlite3.connect(source, timeout=_BUSY_TIMEOUT_S)) as read,
            closing(sqlite3.connect(target)) as written,
        ):
            read.backup(written)
            written.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as exc:
        hint = f"is there room for a copy in {target.parent.parent}? `leverplus doctor` says whether the file is sound"
        raise Unavailable(f"{source} cannot be copied: {exc}; {hint}") from exc


def _link(source: Path, target: Path) -> None:
    """A file that is replaced or deleted afterwards stays as it is under its second name."""
    import shutil

    for path in _walk(source):
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a training state or a file that is being written: gone with its writer's next step
            try:
                os.link(path.resolve(), link)
            except OSError as exc:
                if isinstance(exc, FileNotFoundError):
                    raise
                shutil.copy2(path, link)  # another file system, or one without links


def _files(root: Path, snapshot: Path) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of each, the database first."""
    for name in sorted(SINGLE):
        path = snapshot / name if name == DATABASE else root / name
        if path.is_file():
            yield name, path
    for kind in KINDS:
        # Nothing deletes or changes a dataset: its images are read where they lie.
        folder = (root if kind == "datasets" else snapshot) / kind
        for path in _walk(folder):
            yield f"{kind}/{path.relative_to(folder).as_posix()}", path


def _walk(folder: Path) -> Iterator[Path]:
    """Files below, links followed, without what is being written, was set aside, or is a lock."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        resolved = place.resolve()
        if resolved in seen:
            folders.clear()
            continue
        seen.add(resolved)
        yield from (place / name for name in sorted(names) if not name.startswith(".") and (place / name).is_file())


class Hashed:
    """Reads a file and remembers what it read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._sha256.update(content)
        return content

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _add(archive: tarfile.TarFile, name: str, path: Path) -> tuple[int, str]:
    with path.open("rb") as stream:
        # A log may grow meanwhile: as much is taken as the archive says.
        status = os.fstat(stream.fileno())
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = status.st_size, status.st_mtime, 0o644
        hashed = Hashed(stream)
        archive.addfile(member, cast("Any", hashed))
    return member.size, hashed.sha256


def _add_json(archive: tarfile.TarFile, name: str, value: Any) -> None:
    content = orjson.dumps(value)
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), time.time(), 0o644
    archive.addfile(member, io.BytesIO(content))
