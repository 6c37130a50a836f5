"""What the system says about processes that an earlier launcher may have left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

_PROC = Path("/proc")


def command_line(pid: int) -> list[str] | None:
    """A process's arguments; None if there is no such process (or it is a zombie)."""
    if _PROC.is_dir():
        try:
            raw = (_PROC / str(pid) / "cmdline").read_bytes()
        except OSError:
            return None
        return raw.decode(errors="replace").rstrip("\0").split("\0") if raw else None
    answer = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False)
    return answer.stdout.split() or None


def start_time(pid: int) -> str | None:
    """When a process started, in a form that only that process has; None if there is no such process."""
    if _PROC.is_dir():
        fields = _stat_fields(pid)
        return fields[19] if fields else None
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False)
    return answer.stdout.strip() or None


def group_members(group: int) -> list[int]:
    """Pids of a process group, zombies left out. Without /proc only the leader is known."""
    if not _PROC.is_dir():
        return [group] if command_line(group) else []
    found: list[int] = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat_fields(int(entry.name))) and int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def has_variable(pid: int, assignment: str) -> bool:
    """Whether a process was started with `NAME=value` in its environment; False where that cannot be read."""
    try:
        return assignment.encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def stop_group(group: int, *, limit_s: float) -> None:
    """SIGTERM to a process group, SIGKILL after `limit_s`; returns when no member is left (or 5 s after SIGKILL)."""
    for number, patience_s in ((signal.SIGTERM, limit_s), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        except PermissionError:  # macOS answers this for a group of zombies
            return
        deadline = time.monotonic() + patience_s
        while group_members(group):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on; the command before them may hold spaces and brackets."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
