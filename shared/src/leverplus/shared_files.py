"""What several hosts share of their data roots, in whatever fsspec reaches: s3://, gs://, a mounted folder.

An artefact is a folder or a file of the data root (`datasets/okvqa`, `rl-data/rl-1.ndjson`). In the store it is its contents,
each under its own hash, and a manifest that names them, which is written last, under the next free number, and only where no
other host has taken that number meanwhile:

    <url>/checkpoints/ckpt-1/objects/<sha256>.1          <url>/checkpoints/ckpt-1/manifest-00000001.json

So an upload that was cut off is not seen, what is read is checked against its hashes before it gets its name here, and of two
hosts that write one thing, one is told. Most artefacts are published once. Some are replaced (a deployment, a run directory):
the newest manifest counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

from leverplus.errors import Conflict, InvalidSharedFile, Unavailable
from leverplus.files import atomic_file, atomic_folder, file_sha256
from leverplus.shared_manifests import Manifest, entry_of, files_of, parse_manifest
from leverplus.shared_store import away, reached, send

logger = logging.getLogger(__name__)

_OBJECTS = "objects"
_MANIFEST = re.compile(r"manifest-(\d{8})\.json")
_AT_ONCE = 128
"""Files on their way together; as many of them are open."""
_SMALL = 8 * 2**20
_TRIES = 5
"""Of reading what is being replaced, and of replacing what others replace."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Call = Callable[Concatenate["SharedFiles", _P], _T]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


def _patient(call: _Call[_P, _T]) -> _Call[_P, _T]:
    """Made again while the store is away, with growing pauses that add up to `patience_s` at most."""

    @wraps(call)
    def tried(self: SharedFiles, *arguments: _P.args, **named: _P.kwargs) -> _T:
        left_s, pause_s = self.patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return call(self, *arguments, **named)
            except Unavailable as exc:
                if left_s <= 0:
                    raise
                logger.warning("tried again in %.1f s: %s", pause_s, exc)
                time.sleep(min(pause_s, left_s))
                left_s, pause_s = left_s - pause_s, min(2 * pause_s, _LONGEST_PAUSE_S)

    return tried


@dataclass(frozen=True)
class SharedFiles:
    """The store at `url`, seen from the data root `root`. Paths are below `root`.

    Every call raises Unavailable where the store cannot be reached, for longer than `patience_s`, and NotInstalled without fsspec
    or what it needs for the URL.
    """

    url: str
    root: Path
    patience_s: float = 0.0

    @_patient
    def fetch(self, path: Path) -> bool:
        """Brings an artefact here, whole or not at all; False where none is shared under this name. What is here stays.

        InvalidSharedFile where a file is not what its manifest says.
        """
        if path.exists():
            return True
        for last in (False,) * (_TRIES - 1) + (True,):
            if (manifest := self._newest(path)) is None:
                return False
            with _alone(path):
                # Another process of this host may have brought it.
                if path.exists():
                    return True
                try:
                    self._bring(path, manifest)
                except FileNotFoundError as exc:
                    # Replaced while it was read.
                    if last:
                        raise self._damaged(path, f"an object is missing: {exc}") from exc
                    continue
            logger.info("fetched %s: %d files, %d bytes", self._name(path), len(manifest.files), manifest.bytes)
            return True
        raise AssertionError("the last try returns or raises")

    @_patient
    def refresh(self, path: Path) -> int:
        """Brings the newest of an artefact that is replaced; its version, 0 where none is shared. Of a run directory, the files
        that are here alone stay."""
        for last in (False,) * (_TRIES - 1) + (True,):
            if (manifest := self._newest(path)) is None:
                return 0
            try:
                for name, entry in manifest.files.items():
                    target = path / name if manifest.is_folder else path
                    if not (target.is_file() and file_sha256(target) == entry["sha256"]):
                        self._copy(path, entry, target)
            except FileNotFoundError as exc:
                if last:
                    raise self._damaged(path, f"an object is missing: {exc}") from exc
                continue
            return manifest.version
        raise AssertionError("the last try returns or raises")

    @_patient
    def read(self, path: Path) -> tuple[bytes, int]:
        """The newest contents of a file that is replaced, and its version; empty and 0 where none is shared."""
        if (manifest := self._newest(path)) is None:
            return b"", 0
        entry = manifest.files[path.name]
        with reached(self.url, self.root) as fs:
            try:
                content = bytes(fs.cat_file(self._object(path, entry)))
            except FileNotFoundError as exc:
                raise self._damaged(path, f"an object is missing: {exc}") from exc
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise self._altered(path, entry, hashlib.sha256(content).hexdigest())
        return content, manifest.version

    @_patient
    def publish(self, path: Path) -> None:
        """Shares an artefact that is never changed. Shared already: Conflict unless its files are those here."""
        files = files_of(path)
        entries = {name: entry_of(file, version=1) for name, file in files.items()}
        if (there := self._newest(path)) is None:
            try:
                self._put(path, Manifest(1, path.is_dir(), entries), files)
                return
            except FileExistsError:
                there = self._newest(path)
        assert there is not None, "it was written by another host"
        for name, entry in there.files.items():
            if (own := entries.get(name, {}).get("sha256")) != entry["sha256"]:
                raise Conflict(
                    f"{self._name(path)} is shared already and differs: {name} has sha256 {entry['sha256'][:12]}… there, "
                    f"{own[:12] + '…' if own else 'none'} here; give it another name, or delete the one here"
                )

    @_patient
    def replace(self, path: Path, content: bytes, *, version: int) -> None:
        """Shares new contents of a file in place of `version`; Conflict where another host did so first."""
        entry = entry_of(content, version=version + 1)
        try:
            self._put(path, Manifest(version + 1, False, {path.name: entry}), {path.name: content})
        except FileExistsError as exc:
            raise Conflict(f"{self._name(path)} was replaced by another host at this moment; look at it and try again") from exc

    @_patient
    def publish_newest(self, folder: Path, *, without: Collection[str] = ()) -> None:
        """Shares a folder as it is now, but for entries of it, in place of what was shared of it, whoever did; files that did not
        change are not sent."""
        # A log that grows between being hashed and being sent would be refused as altered.
        files = {
            name: file.read_bytes() if file.stat().st_size < _SMALL else file
            for name, file in files_of(folder).items()
            if name.partition("/")[0] not in without
        }
        for _ in range(_TRIES):
            there = self._newest(folder)
            version, before = (there.version, there.files) if there is not None else (0, {})
            entries = {name: entry_of(file, version=version + 1) for name, file in files.items()}
            kept = {
                name: before[name] for name, entry in entries.items() if before.get(name, {}).get("sha256") == entry["sha256"]
            }
            if kept.keys() == entries.keys() == before.keys():
                return
            sent = {name: file for name, file in files.items() if name not in kept}
            with suppress(FileExistsError):
                self._put(folder, Manifest(version + 1, True, {**entries, **kept}), sent)
                return
        raise Conflict(f"{self._name(folder)} is replaced by other hosts all the time")

    @_patient
    def delete(self, path: Path) -> None:
        """Takes the artefact out of the store, and all that lies below it; where there is none, nothing happens."""
        with reached(self.url, self.root) as fs:
            place = self._place(path)
            try:
                names = [str(name) for name in fs.find(place)]
            except FileNotFoundError:
                return
            # Without a manifest nobody finds it half deleted.
            manifests = [name for name in names if _MANIFEST.fullmatch(PurePosixPath(name).name)]
            for part in (manifests, [name for name in names if name not in manifests]):
                if part:
                    fs.rm(part)

    @_patient
    def names(self, folder: Path) -> list[str]:
        """Names of what is shared below a folder of the data root, artefacts cut off in the middle among them."""
        with reached(self.url, self.root) as fs:
            try:
                found = fs.ls(self._place(folder), detail=True)
            except FileNotFoundError:
                return []
        names = {PurePosixPath(str(entry["name"])).name for entry in found if entry["type"] == "directory"}
        return sorted(names - {_OBJECTS})

    def _put(self, path: Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> None:
        """Objects, then the manifest; FileExistsError where its number is taken. Then goes what only the one before it named."""
        with reached(self.url, self.root) as fs:
            objects = f"{self._place(path)}/{_OBJECTS}"
            try:
                there = {PurePosixPath(entry["name"]).name: entry["size"] for entry in fs.ls(objects, detail=True)}
            except FileNotFoundError:
                there = {}
            missing = [
                (file, f"{objects}/{manifest.files[name]['object']}")
                for name, file in files.items()
                if there.get(manifest.files[name]["object"]) != manifest.files[name]["bytes"]
            ]
            try:
                for start in range(0, len(missing), _AT_ONCE):
                    send(fs, missing[start : start + _AT_ONCE])
                fs.pipe_file(self._manifest(path, manifest.version), manifest.dumped(), mode="create")
            except FileNotFoundError as exc:
                # No bucket: to who reads, nothing is there.
                raise away(self.url, self.root, exc) from exc
            sent = sum(manifest.files[name]["bytes"] for name in files)
            logger.info("shared %s: %d files, %d bytes", self._name(path), len(files), sent)
            if manifest.version > 1:
                with suppress(FileNotFoundError):
                    fs.rm_file(self._manifest(path, manifest.version - 1))
                named = {str(entry["object"]) for entry in manifest.files.values()}
                # A host that lost the race for this number left objects of it; those of later ones are on their way.
                for name in there:
                    if name not in named and int(name.rpartition(".")[2]) < manifest.version:
                        with suppress(FileNotFoundError):
                            fs.rm_file(f"{objects}/{name}")

    def _newest(self, path: Path) -> Manifest | None:
        for _ in range(_TRIES):
            with reached(self.url, self.root) as fs:
                try:
                    found = fs.ls(self._place(path), detail=False)
                    newest = max(
                        (int(match[1]) for name in found if (match := _MANIFEST.fullmatch(PurePosixPath(str(name)).name))),
                        default=0,
                    )
                    if newest:
                        return parse_manifest(bytes(fs.cat_file(self._manifest(path, newest))), newest)
                except FileNotFoundError:
                    # Replaced or deleted between the two.
                    continue
                except ValueError as exc:
                    raise self._damaged(path, str(exc)) from exc
                return None
        return None

    def _bring(self, path: Path, manifest: Manifest) -> None:
        if not manifest.is_folder:
            self._copy(path, manifest.files[path.name], path)
            return
        with atomic_folder(path) as target, reached(self.url, self.root) as fs:
            entries = list(manifest.files.items())
            for name, _ in entries:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
            for start in range(0, len(entries), _AT_ONCE):
                part = entries[start : start + _AT_ONCE]
                fs.get([self._object(path, entry) for _, entry in part], [str(target / name) for name, _ in part])
                for name, entry in part:
                    if (found := file_sha256(target / name)) != entry["sha256"]:
                        raise self._altered(path, entry, found)

    def _copy(self, path: Path, entry: Mapping[str, Any], target: Path) -> None:
        """One object to a file here, checked before the file gets its name."""
        with (
            atomic_file(target) as stream,
            reached(self.url, self.root) as fs,
            fs.open(self._object(path, entry), "rb") as source,
        ):
            hashing = _Hashing(stream)
            shutil.copyfileobj(source, hashing, 1024 * 1024)
            if (found := hashing.hash.hexdigest()) != entry["sha256"]:
                raise self._altered(path, entry, found)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _place(self, path: Path) -> str:
        return f"{self.url.rstrip('/')}/{self._name(path)}"

    def _object(self, path: Path, entry: Mapping[str, Any]) -> str:
        return f"{self._place(path)}/{_OBJECTS}/{entry['object']}"

    def _manifest(self, path: Path, version: int) -> str:
        return f"{self._place(path)}/manifest-{version:08}.json"

    def _damaged(self, path: Path, reason: str) -> InvalidSharedFile:
        return InvalidSharedFile(path=self._place(path), reason=f"{reason}; delete it there and publish it again")

    def _altered(self, path: Path, entry: Mapping[str, Any], found: str) -> InvalidSharedFile:
        return self._damaged(path, f"object {entry['object'][:12]}… has sha256 {found[:12]}…: it was altered")


class _Hashing:
    """A stream that hashes what it passes on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self._stream.write(data)


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """One at a time on this host: several processes may miss the same thing at once, and it may be large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.fetching"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
