"""A data folder out of an archive that `leverplus.backup` made: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import orjson

from leverplus.backup import CHECKSUMS, DATABASE, FORMAT, HEADER, SINGLE, Backup, Hashed
from leverplus.data_root import KINDS
from leverplus.errors import InvalidInput, Unavailable
from leverplus.files import name_file, remove_folder, remove_left_over, temporary_name

_CHUNK = 1024 * 1024
_LARGEST_JSON = 1024 * 1024 * 1024


class InvalidBackup(InvalidInput):
    title = "Invalid backup"
    template = "the backup cannot be restored: {reason}; nothing was restored"


def read_backup(stream: BinaryIO, data: Path) -> Backup:
    """Makes the data folder `data` of an archive; all of it is there at the end, or nothing.

    InvalidInput where `data` holds something already; InvalidBackup for an archive that is cut short, altered, or no backup;
    Unavailable where its disk has less room than the archive takes, which only a file tells before it is read.
    """
    if data.exists():
        _require_empty(data)
    _require_room(stream, data)
    made = [path for path in (data, *data.parents) if not path.exists()]
    folder = temporary_name(data / "restore")
    moved: list[Path] = []
    try:
        folder.mkdir(parents=True)
        backup = _unpack(stream, folder)
        os.sync()
        # The database last: services that were started too early find nothing to work on.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == DATABASE):
            moved.append(path.rename(data / path.name))
    except BaseException as exc:
        for path in moved:
            remove_folder(path) if path.is_dir() else path.unlink()
        remove_folder(folder)
        for path in made:
            with suppress(OSError):  # not made yet, or somebody else has put something into it
                path.rmdir()
        name_file(exc, data)
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


def _require_room(stream: BinaryIO, data: Path) -> None:
    """The archive of a file is no larger than what comes out of it, give or take its headers."""
    try:
        needed = os.fstat(stream.fileno()).st_size
    except OSError:  # not a file: a buffer in memory
        return
    free = shutil.disk_usage(next(path for path in (data, *data.parents) if path.exists())).free
    if needed > free:
        reason = f"the backup takes {needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free there"
        raise Unavailable(f"{data}: {reason}; free some space, or choose a folder on another disk with --data")


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
                elif member.name == CHECKSUMS:
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
    if member.name != HEADER:
        raise InvalidBackup(reason=f"it begins with {member.name!r}, not with {HEADER}; `leverplus backup` makes what can be")
    header = _json_object(archive, member)
    if header.get("format") != FORMAT or header.get("database") not in ("sqlite", "postgresql"):
        raise InvalidBackup(reason=f"its format is {header.get('format')!r}, this version reads {FORMAT}")
    if missing := {"made_at", "code_version"} - header.keys():
        raise InvalidBackup(reason=f"{HEADER} has no {', '.join(sorted(missing))}")
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
    hashed = Hashed(cast("BinaryIO", content))
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
    is_ours = name in SINGLE or (len(parts) > 1 and parts[0] in KINDS)
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
