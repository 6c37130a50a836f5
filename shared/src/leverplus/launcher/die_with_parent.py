"""Becomes another program that the kernel stops when its parent dies: `die_with_parent.py PARENT_PID PROGRAM ARG…`.

Run as a script, so that the launcher need not execute Python between fork and exec. Linux only: elsewhere, and where
prctl is refused, the program simply starts. The setting survives exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # The parent may have died before the line above took effect.
        if os.getppid() != parent:
            sys.exit(0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
