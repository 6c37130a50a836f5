"""What is known of scorers that were killed, from outside of them, and what it says of their promises."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ScoreName = tuple[str, int, str]
"""Kind (text or probabilities), query, pointer as ids joined by commas."""


@dataclass(frozen=True)
class Batch:
    """What the engine of process `pid` was asked for. Times are seconds since 1970."""

    pid: int
    at: float
    names: tuple[ScoreName, ...]


def read_batches(path: Path) -> list[Batch]:
    """The engines' record in the order of its lines; a last line that a kill cut off counts as not begun."""
    batches: list[Batch] = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            continue
        read = json.loads(line)
        names = tuple((read["kind"], query, ",".join(map(str, pointer))) for query, pointer in read["keys"])
        batches.append(Batch(read["pid"], read["at"], names))
    return batches


@dataclass
class Watched:
    """What was seen in the database by looking again and again; `lost` and `changed` are told as they are found."""

    values: dict[ScoreName, str] = field(default_factory=dict[ScoreName, str])
    seen_at: dict[ScoreName, float] = field(default_factory=dict[ScoreName, float])
    lost: set[ScoreName] = field(default_factory=set[ScoreName])
    changed: set[ScoreName] = field(default_factory=set[ScoreName])

    def look(self, rows: Mapping[ScoreName, str], at: float) -> None:
        """`rows` is all that the database holds, read before the time `at`."""
        self.lost |= self.values.keys() - rows.keys()
        self.changed |= {name for name, value in self.values.items() if rows.get(name, value) != value}
        for name in rows.keys() - self.values.keys():
            self.values[name], self.seen_at[name] = rows[name], at


@dataclass(frozen=True)
class Kill:
    """`committed`: what the database held once process `pid` was dead."""

    pid: int
    committed: frozenset[ScoreName]


@dataclass(frozen=True)
class Generations:
    """`made`: scores that engines were asked for, repeats included. `in_flight`: for each kill, what the process had begun and
    not committed; `repeated`: how many of these were begun again. `after_commit`: begun after they were seen in the
    database. `unexplained`: begun more than once though no kill had cut them off."""

    made: int
    in_flight: tuple[int, ...]
    repeated: tuple[int, ...]
    after_commit: frozenset[ScoreName]
    unexplained: frozenset[ScoreName]


def judge(batches: Iterable[Batch], kills: Iterable[Kill], seen_at: Mapping[ScoreName, float]) -> Generations:
    """Who made what how often. Process ids must not have been used twice."""
    batches, kills = list(batches), list(kills)
    made_by: dict[ScoreName, list[int]] = {}
    for batch in batches:
        for name in batch.names:
            made_by.setdefault(name, []).append(batch.pid)
    cut_off = {
        kill.pid: {name for batch in batches if batch.pid == kill.pid for name in batch.names} - kill.committed for kill in kills
    }
    unexplained = {
        name
        for name, pids in made_by.items()
        if any(name not in cut_off.get(pid, ()) for pid in pids[:-1]) or len(set(pids)) < len(pids)
    }
    return Generations(
        made=sum(map(len, made_by.values())),
        in_flight=tuple(len(names) for names in cut_off.values()),
        repeated=tuple(sum(pid in made_by[name][:-1] for name in names) for pid, names in cut_off.items()),
        after_commit=frozenset(name for batch in batches for name in batch.names if name in seen_at and batch.at > seen_at[name]),
        unexplained=frozenset(unexplained),
    )
