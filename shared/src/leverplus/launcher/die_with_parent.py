"""Becomes another program that the kernel ends when its parent dies: `die_with_parent.py PARENT_PID SIGNAL PROGRAM ARG…`.

Run as a script, so that the launcher need not execute Python between fork and exec. Linux only: elsewhere, and where
prctl is refused, the program simply starts. The setting survives exec, but not a fork: a program that forks calls
`die_with` in its own children.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, signal_number: int) -> None:
    """From now on the kernel sends this process the signal when `parent`, which started it, ends. Exits if it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        # The parent may have died before the line above took effect.
        if os.getppid() != parent:
            os._exit(0)


def main(arguments: list[str]) -> None:
    parent, signal_number, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    die_with(parent, signal_number)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
