"""How often a program may end before the launcher gives up on it."""

from __future__ import annotations

import time
from collections import deque

from leverplus.launcher.child import Child

MOST, WITHIN_S = 5, 60.0


class Restarts:
    """Ends of one launcher's programs. More than MOST within WITHIN_S seconds are not mended by another start."""

    def __init__(self) -> None:
        self._ends: dict[str, deque[float]] = {}

    def allow(self, child: Child) -> None:
        """Counts the end of `child`; ProcessEnded, with its last log lines, where it was one too many."""
        now = time.monotonic()
        ends = self._ends.setdefault(child.name, deque(maxlen=MOST))
        if len(ends) == MOST and now - ends[0] <= WITHIN_S:
            child.require_running()
        ends.append(now)
