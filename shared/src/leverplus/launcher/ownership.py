"""One owner per folder, by a lock that the kernel releases when the owner dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from leverplus.errors import Conflict


class OwnerLock:
    """An exclusive flock on `path`. Taken on construction; Conflict, naming the holder's pid, if someone has it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Descriptors are not inherited by children, so a surviving child never holds the lock.
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise Conflict(
                f"{path.parent} is in use by another launcher (pid {holder}); stop that one or choose another folder with --data",
                folder=str(path.parent),
                holder=holder,
            ) from exc
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Gives the folder free; a second call does nothing. The file stays: removing it would let two owners lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
