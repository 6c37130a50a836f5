"""Freed memory goes back to the system, a process of its own being looked at."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os
from pathlib import Path
from leverplus.web.freed_memory import give_back

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

held = [bytes([number % 256]) * 1024 for number in range(100_000)]
pinned = held[::1000]  # the last is above all others: nothing below it goes back by itself
pinned.append(bytes(1024))
del held
before = resident_mib()
give_back()
print(before - resident_mib())
"""


def test_what_lies_free_below_what_is_held_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) > 50  # of some 100 MiB
