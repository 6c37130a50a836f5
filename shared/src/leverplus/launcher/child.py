"""One started program: its own process group, its log, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from leverplus.errors import Unavailable
from leverplus.launcher import die_with_parent
from leverplus.launcher.process_table import start_time, stop_group


class ProcessEnded(Unavailable):
    """A process that should run does not. Raised with `name`, `code`, `log`, and `tail`: its last log lines."""

    title = "Process ended"
    template = "{name} ended with exit code {code}; its log is {log}"


class Child:
    """A running program that dies with the launcher.

    It leads its own session, so ^C in the launcher's terminal reaches only the launcher, which then stops it in order.
    On Linux the kernel sends it `death_signal` when the *thread* that started it ends: start it from one that outlives it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = log
        wrapped = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), str(int(death_signal)), *command]
        with log.open("ab") as stream:
            self._log_start = stream.tell()
            self._process = subprocess.Popen(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                # What the launcher was given is passed on; what it decided goes on top.
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.started = start_time(self.pid)

    @property
    def pid(self) -> int:
        """Also the id of the process group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.poll()

    def require_running(self) -> None:
        """ProcessEnded, with the last log lines, if it has ended."""
        if (code := self.exit_code()) is not None:
            raise ProcessEnded(name=self.name, code=code, log=str(self.log), tail=self.tail())

    def tail(self, lines: int = 15) -> list[str]:
        """The last lines that this run wrote to its log; one that begins with `error:` stands for all."""
        with self.log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(self._log_start, stream.tell() - 16384))
            written = stream.read().decode(errors="replace").splitlines()
        return [line for line in written if line.startswith("error:")][-lines:] or written[-lines:]

    def stop(self, *, limit_s: float) -> None:
        """SIGTERM to the program, then, after `limit_s` at most, an end to whatever is left of its group. May be called again."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(limit_s)
        stop_group(self.pid, limit_s=0.0)
        self._process.wait(5.0)
