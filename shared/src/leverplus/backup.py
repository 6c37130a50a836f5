"""A data folder as one file, and back.

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
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

import orjson

from leverplus import __version__
from leverplus.data_root import KINDS, DataRoot
from leverplus.deployments import deletions_locked_out
from leverplus.errors import InvalidInput, NotFound
from leverplus.files import remove_folder, remove_left_over, temporary_name

FORMAT = 1
_HEADER = "backup.json"
_CHECKSUMS = "checksums.json"
_DATABASE = "store.sqlite"
_SINGLE = frozenset({_DATABASE, "demo-imported.json"})
"""Files of the data folder itself."""
_CHUNK = 1024 * 1024
_LARGEST_JSON = 1024 * 1024 * 1024
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


class InvalidBackup(InvalidInput):
    title = "Invalid backup"
    template = "the backup cannot be restored: {reason}; nothing was restored"


def write_backup(root: DataRoot, stream: BinaryIO, *, database: Path | None) -> Backup:
    """Writes the data folder to `stream`, while services run on it. NotFound where there is no such folder.

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
            _add_json(archive, _HEADER, header)
            for name, path in _files(root.path, folder):
                checksums[name] = _add(archive, name, path)
            _add_json(archive, _CHECKSUMS, checksums)
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
                _copy_database(database, folder / _DATABASE)
            for kind in KINDS:
                if kind != "datasets":
                    _link(root.path / kind, folder / kind)
        yield folder, made_at
    finally:
        remove_folder(folder)


def _copy_database(source: Path, target: Path) -> None:
    """One state of it, however many write meanwhile; one file, without a log beside it."""
    with (
        closing(sqlite3.connect(source, timeout=_BUSY_TIMEOUT_S)) as read,
        closing(sqlite3.connect(target)) as written,
    ):
        read.backup(written)
        written.execute("PRAGMA journal_mode=DELETE")


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
    for name in sorted(_SINGLE):
        path = snapshot / name if name == _DATABASE else root / name
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


class _Hashed:
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
        hashed = _Hashed(stream)
        archive.addfile(member, cast("Any", hashed))
    return member.size, hashed.sha256


def _add_json(archive: tarfile.TarFile, name: str, value: Any) -> None:
    content = orjson.dumps(value)
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), time.time(), 0o644
    archive.addfile(member, io.BytesIO(content))


def read_backup(stream: BinaryIO, data: Path) -> Backup:
    """Makes the data folder `data` of an archive; all of it is there at the end, or nothing.

    InvalidInput where `data` holds something already; InvalidBackup for an archive that is cut short, altered, or no backup.
    """
    made = not data.exists()
    if not made:
        _require_empty(data)
    data.mkdir(parents=True, exist_ok=True)
    folder = temporary_name(data / "restore")
    moved: list[Path] = []
    try:
        folder.mkdir()
        backup = _unpack(stream, folder)
        os.sync()
        # The database last: services that were started too early find nothing to work on.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == _DATABASE):
            moved.append(path.rename(data / path.name))
    except BaseException:
        for path in moved:
            remove_folder(path) if path.is_dir() else path.unlink()
        remove_folder(folder)
        if made:
            data.rmdir()
        raise
    folder.rmdir()
    return backup


def _require_empty(data: Path) -> None:
    if not data.is_dir():
        raise InvalidInput(f"{data} is not a folder; name one that is empty, or not there yet")
    remove_left_over(data, older_than_s=0.0)
    held = sorted(path.name for path in data.iterdir() if path.name != "lost+found")
    if held:
        listed = ", ".join(held[:5]) + (", …" if len(held) > 5 else "")
        raise InvalidInput(f"{data} is not empty ({listed}): a backup is restored into a new folder; name another, or empty it")


def _unpack(stream: BinaryIO, folder: Path) -> Backup:
    found: dict[str, tuple[int, str]] = {}
    header: dict[str, Any] | None = None
    stated: dict[str, list[Any]] | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if stated is not None:
                    raise InvalidBackup(reason=f"{member.name!r} comes after its end")
                if header is None:
                    header = _read_header(archive, member)
                elif member.name == _CHECKSUMS:
                    stated = _json_object(archive, member)
                else:
                    found[member.name] = _extract(archive, member, folder, found)
    except tarfile.TarError as exc:
        raise InvalidBackup(reason=f"it is no whole tar archive ({exc})") from exc
    if header is None or stated is None:
        raise InvalidBackup(reason="it is cut short: its checksums, which come last, are missing")
    _compare(found, stated)
    total = sum(size for size, _ in found.values())
    return Backup(FORMAT, str(header["made_at"]), str(header["code_version"]), header["database"], len(found), total)


def _read_header(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    if member.name != _HEADER:
        raise InvalidBackup(reason=f"it begins with {member.name!r}, not with {_HEADER}; `leverplus backup` makes what can be")
    header = _json_object(archive, member)
    if header.get("format") != FORMAT or header.get("database") not in ("sqlite", "postgresql"):
        raise InvalidBackup(reason=f"its format is {header.get('format')!r}, this version reads {FORMAT}")
    if missing := {"made_at", "code_version"} - header.keys():
        raise InvalidBackup(reason=f"{_HEADER} has no {', '.join(sorted(missing))}")
    return header


def _json_object(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    if not member.isreg() or member.size > _LARGEST_JSON:
        raise InvalidBackup(reason=f"{member.name} is no file of a fitting size")
    content = archive.extractfile(member)
    assert content is not None, "it is a regular file"
    try:
        value = orjson.loads(content.read())
    except orjson.JSONDecodeError as exc:
        raise InvalidBackup(reason=f"{member.name} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidBackup(reason=f"{member.name} is no JSON object")
    return cast("dict[str, Any]", value)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, found: dict[str, Any]) -> tuple[int, str]:
    _check_name(member)
    if member.name in found:
        raise InvalidBackup(reason=f"{member.name!r} is in it twice")
    content = archive.extractfile(member)
    assert content is not None, "it is a regular file"
    path = folder / member.name
    hashed = _Hashed(cast("BinaryIO", content))
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.open("xb")
    except (FileExistsError, NotADirectoryError) as exc:
        raise InvalidBackup(reason=f"{member.name!r} is a file and a folder in it") from exc
    with written:
        while chunk := hashed.read(_CHUNK):
            size += len(chunk)
            written.write(chunk)
    if size != member.size:
        raise InvalidBackup(reason=f"it is cut short in {member.name!r}")
    os.utime(path, (member.mtime, member.mtime))
    return size, hashed.sha256


def _check_name(member: tarfile.TarInfo) -> None:
    """Only files of a data folder, in their places."""
    name = member.name
    parts = PurePosixPath(name).parts
    is_plain = "\\" not in name and "\0" not in name and not name.startswith("/") and "/".join(parts) == name
    is_ours = name in _SINGLE or (len(parts) > 1 and parts[0] in KINDS)
    if not (member.isreg() and is_plain and is_ours and ".." not in parts):
        raise InvalidBackup(reason=f"{name!r} is no file of a data folder")


def _compare(found: dict[str, tuple[int, str]], stated: dict[str, list[Any]]) -> None:
    if missing := sorted(stated.keys() - found.keys()):
        raise InvalidBackup(reason=f"{missing[0]!r} is missing" + (f", and {len(missing) - 1} more" if missing[1:] else ""))
    for name, (size, sha256) in found.items():
        if stated.get(name) != [size, sha256]:
            reason = (
                "is not listed in its checksums" if name not in stated else f"is altered: {[size, sha256]}, not {stated[name]}"
            )
            raise InvalidBackup(reason=f"{name!r} {reason}")
