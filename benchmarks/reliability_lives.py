"""Whether processes grow: the resident set and the open files of each, over its life."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SETTLED_S, LEAST_S = 30.0, 30.0
"""A life is judged from SETTLED_S after it was first seen, if it goes on for LEAST_S."""
MOST_MIB, MOST_SHARE, MOST_FILES = 8.0, 0.05, 16
"""Flat is a life that grows by less than MOST_MIB or MOST_SHARE of it, and by at most MOST_FILES."""


class Sample(NamedTuple):
    at_s: float
    mib: float
    files: int


@dataclass
class Lives:
    """Samples of each (program, pid), in order."""

    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def look(self, processes: Mapping[str, int], at_s: float) -> None:
        """One sample of each that is there."""
        for name, pid in processes.items():
            with suppress(FileNotFoundError, ProcessLookupError):
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
                self.samples[name, pid].append(Sample(at_s, resident, len([*Path(f"/proc/{pid}/fd").iterdir()])))

    def told(self) -> dict[str, dict[str, Any]]:
        """Of each program: its largest size, how many lives were long enough to judge, and the growth of the worst of them."""
        found: dict[str, dict[str, Any]] = {}
        for name in sorted({name for name, _ in self.samples}):
            lives = [life for (program, _), life in self.samples.items() if program == name]
            judged = [growth for life in lives if (growth := _growth(life)) is not None]
            found[name] = {
                "largest_mib": round(max(sample.mib for life in lives for sample in life), 1),
                "lives": len(lives),
                "lives_judged": len(judged),
                "judged_s": round(sum(growth.over_s for growth in judged)),
                "grew_mib": round(max((growth.mib for growth in judged), default=0.0), 1) if judged else None,
                "grew_files": max(growth.files for growth in judged) if judged else None,
                "is_flat": all(growth.is_flat for growth in judged) if judged else None,
            }
        return found


class _Growth(NamedTuple):
    mib: float
    files: float
    over_s: float
    is_flat: bool


def _growth(life: list[Sample]) -> _Growth | None:
    """From the median of the first fifth after SETTLED_S to that of the last fifth; None of a life that is too short."""
    settled = [sample for sample in life if sample.at_s >= life[0].at_s + SETTLED_S]
    if not settled or settled[-1].at_s - settled[0].at_s < LEAST_S:
        return None
    fifth = max(1, len(settled) // 5)
    before, after = settled[:fifth], settled[-fifth:]
    size = median(sample.mib for sample in before)
    mib = median(sample.mib for sample in after) - size
    files = median(sample.files for sample in after) - median(sample.files for sample in before)
    is_flat = mib < max(MOST_MIB, MOST_SHARE * size) and files <= MOST_FILES
    return _Growth(mib, files, settled[-1].at_s - settled[0].at_s, is_flat)
