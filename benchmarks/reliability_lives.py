"""Whether processes grow: the resident set and the open files of each, over its life."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SETTLED_S, LEAST_S = 30.0, 270.0
"""A life is judged from SETTLED_S after it was first seen, if it goes on for LEAST_S: in less, caches have not filled."""
MOST_MIB_PER_MIN, MOST_SHARE, MOST_FILES = 1.0, 0.3, 16
"""Flat is a life that at its end grows by less than MOST_MIB_PER_MIN and MOST_SHARE of it, and in all by at most MOST_FILES."""

EVERY = 30
"""Seconds between the sizes of its longest life that are told of a program."""


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
        """Of each program: its largest size, how many lives were long enough to judge, and the growth of the worst: in all,
        and a minute at the end."""
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
                "grew_mib_per_min_at_end": round(max(growth.mib_per_min for growth in judged), 2) if judged else None,
                "grew_files": max(growth.files for growth in judged) if judged else None,
                "is_flat": all(growth.is_flat for growth in judged) if judged else None,
                "longest_life_mib": _every(max(lives, key=len)),
            }
        return found


def _every(life: list[Sample]) -> list[float]:
    """Resident MiB at its start and every EVERY samples."""
    return [round(sample.mib, 1) for sample in life[::EVERY]]


class _Growth(NamedTuple):
    mib: float
    mib_per_min: float
    files: float
    over_s: float
    is_flat: bool


def _growth(life: list[Sample]) -> _Growth | None:
    """Between the medians of fifths of what follows SETTLED_S; None of a life that is too short.

    A leak grows from the third fifth to the fourth and from there to the last; a cache that has filled, or a burst that left
    free memory behind, does so once at most. So the smaller of these two is the growth a minute at the end.
    """
    settled = [sample for sample in life if sample.at_s >= life[0].at_s + SETTLED_S]
    if not settled or (over_s := settled[-1].at_s - settled[0].at_s) < LEAST_S:
        return None
    bounds = [round(len(settled) * number / 5) for number in range(6)]
    fifths = [settled[start:stop] for start, stop in pairwise(bounds)]
    sizes = [median(sample.mib for sample in fifth) for fifth in fifths]
    files = median(sample.files for sample in fifths[-1]) - median(sample.files for sample in fifths[0])
    third, fourth, last = sizes[2:]
    per_min = min(fourth - third, last - fourth) * 5 * 60 / over_s
    is_flat = per_min < MOST_MIB_PER_MIN and last - third < MOST_SHARE * third and files <= MOST_FILES
    return _Growth(last - sizes[0], per_min, files, over_s, is_flat)
