"""What is in an RL file, counted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leverplus.ids import ItemId
from leverplus.rl_data.reading import Notes, file_fingerprint, read_with_notes
from leverplus.rl_data.records import Candidate, QueryRecord
from leverplus.rl_data.sources import open_source

if TYPE_CHECKING:
    from leverplus.rewards import RewardConfig

HISTOGRAM_BARS = 20
"""Distinct rewards up to this many are counted one by one; more of them in this many equal intervals."""


def inspect(path: Path | str, reward: RewardConfig | None = None) -> dict[str, Any]:
    """Reads the file (refusing what `read` refuses) and counts; plain values, ready for JSON.

    A positive is a candidate whose vqa_correct is 1. Shares are in [0, 1], None of nothing: `modes` of all candidates, `correct`
    of those whose correctness is known. A query counts as all_correct or all_wrong where every candidate is known to be so,
    zero-shot among them. `by_shots` has the same for groups, the candidates of one query with equally many demonstrations,
    which is where rewards are compared: a group without two different rewards teaches a selector nothing
    (`groups_of_equal_rewards`). `positives_per_query`, `positives_per_group`: number of positives -> how many have it.
    `rewards`: by `reward` (default: hard_plus_soft), raw, without zero-shot rows. `pool_coverage`: which share of a query's pool
    is in one of its pointers, and of all pools' distinct ids in any pointer. `duplicates` are rows that were merged into another
    of the same ordered pointer, `same_set_other_order` pointers whose set of demonstrations another of their query has.
    """
    # Imported here: rewards needs the records of this package.
    from leverplus.rewards import RewardConfig

    config = RewardConfig() if reward is None else reward
    source = open_source(Path(path))
    notes = Notes()
    counts = _Counts()
    for record in read_with_notes(source, notes):
        counts.add(record, config)
    candidates = counts.modes.total()
    report: dict[str, Any] = {
        "file": str(path),
        "form": source.form,
        "queries": counts.verdicts.total(),
        "candidates": candidates,
        "shots": {str(shots): group.candidates for shots, group in sorted(counts.by_shots.items())},
        "modes": {mode: {"count": count, "share": _share(count, candidates)} for mode, count in counts.modes.items()},
        "gen_methods": dict(counts.methods.most_common()),
        "correct": _correct(counts.by_shots.values()),
        "queries_all_correct": counts.verdicts["all correct"],
        "queries_all_wrong": counts.verdicts["all wrong"],
        "queries_without_candidates": counts.verdicts["none"],
        "positives_per_query": _by_number(counts.positives),
        "by_shots": {str(shots): group.to_json() for shots, group in sorted(counts.by_shots.items())},
        "rewards": {"mode": config.mode, **_describe_rewards(counts.rewards), "unknown": counts.unknown_rewards},
        "pool_coverage": counts.pool_coverage(),
        "duplicates": notes.merged_rows,
        "same_set_other_order": counts.reordered,
        "pool_sizes": _by_number(counts.pool_sizes),
        "pool_sources": dict(counts.pool_sources),
        "pools_with_their_query": counts.own_query_in_pool,
        "ignored_fields": dict(notes.ignored_fields),
        "fingerprint": file_fingerprint(source).digests(),
    }
    return {**report, "warnings": list(_warnings(report, notes))}


@dataclass
class _GroupCounts:
    """Of all groups with one number of shots."""

    candidates: int = 0
    correct: int = 0
    known: int = 0
    fallback: int = 0
    equal_rewards: int = 0
    verdicts: Counter[str] = field(default_factory=Counter[str])
    positives: Counter[int] = field(default_factory=Counter[int])
    rewards: set[float] = field(default_factory=set[float])

    def to_json(self) -> dict[str, Any]:
        return {
            "groups": self.verdicts.total(),
            "candidates": self.candidates,
            "correct": {"count": self.correct, "known": self.known, "share": _share(self.correct, self.known)},
            "groups_all_correct": self.verdicts["all correct"],
            "groups_all_wrong": self.verdicts["all wrong"],
            "groups_of_equal_rewards": self.equal_rewards,
            "fallback_share": _share(self.fallback, self.candidates),
            "unique_rewards": len(self.rewards),
            "positives_per_group": _by_number(self.positives),
        }


@dataclass
class _Counts:
    modes: Counter[str] = field(default_factory=lambda: Counter({"file": 0, "fallback": 0, "error": 0, "unknown": 0}))
    methods: Counter[str] = field(default_factory=Counter[str])
    verdicts: Counter[str] = field(default_factory=Counter[str])
    positives: Counter[int] = field(default_factory=Counter[int])
    by_shots: dict[int, _GroupCounts] = field(default_factory=dict[int, _GroupCounts])
    rewards: array[float] = field(default_factory=lambda: array("d"))
    unknown_rewards: int = 0
    reordered: int = 0
    pool_sizes: Counter[int] = field(default_factory=Counter[int])
    pool_sources: Counter[str] = field(default_factory=Counter[str])
    own_query_in_pool: int = 0
    coverage: array[float] = field(default_factory=lambda: array("d"))
    offered: set[ItemId] = field(default_factory=set[ItemId])
    tried: set[ItemId] = field(default_factory=set[ItemId])

    def add(self, record: QueryRecord, config: RewardConfig) -> None:
        candidates = record.candidates
        self.modes.update(candidate.vqa_eval_mode for candidate in candidates)
        self.methods.update(candidate.gen_method or "unknown" for candidate in candidates)
        self.verdicts[_verdict(candidates)] += 1
        self.positives[sum(candidate.vqa_correct == 1 for candidate in candidates)] += 1
        self.reordered += len(candidates) - len({frozenset(candidate.pointer) for candidate in candidates})
        self._add_groups(candidates, config)
        self._add_pool(record, {item_id for candidate in candidates for item_id in candidate.pointer})

    def _add_groups(self, candidates: tuple[Candidate, ...], config: RewardConfig) -> None:
        from leverplus.rewards import compute_rewards

        groups: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            groups.setdefault(len(candidate.pointer), []).append(candidate)
        for shots, group in groups.items():
            counts = self.by_shots.setdefault(shots, _GroupCounts())
            correct = sum(candidate.vqa_correct == 1 for candidate in group)
            counts.candidates += len(group)
            counts.correct += correct
            counts.known += sum(candidate.vqa_correct is not None for candidate in group)
            counts.fallback += sum(candidate.vqa_eval_mode == "fallback" for candidate in group)
            counts.verdicts[_verdict(group)] += 1
            counts.positives[correct] += 1
            known = [value for value in compute_rewards(group, config) if value is not None]
            counts.rewards.update(known)
            counts.equal_rewards += len(set(known)) == 1
            if shots:
                self.rewards.extend(known)
                self.unknown_rewards += len(group) - len(known)

    def _add_pool(self, record: QueryRecord, used: set[ItemId]) -> None:
        pool = record.candidate_pool_ids
        self.pool_sizes[len(pool)] += 1
        self.pool_sources[record.pool_source] += 1
        self.own_query_in_pool += record.query_id in pool
        if pool:
            self.coverage.append(len(used) / len(pool))
        self.offered.update(pool)
        self.tried.update(used)

    def pool_coverage(self) -> dict[str, float | None]:
        shares = np.array(self.coverage)
        known = shares.size > 0
        return {
            "mean": float(shares.mean()) if known else None,
            "min": float(shares.min()) if known else None,
            "max": float(shares.max()) if known else None,
            "of_all_pools": _share(len(self.tried), len(self.offered)),
        }


def _describe_rewards(rewards: array[float]) -> dict[str, Any]:
    values = np.array(rewards)
    if not values.size:
        return {"known": 0, "distinct": 0, "mean": None, "min": None, "max": None, "histogram": []}
    distinct, numbers = np.unique(values, return_counts=True)
    if len(distinct) <= HISTOGRAM_BARS:
        bars = [{"from": float(value), "to": float(value), "count": int(n)} for value, n in zip(distinct, numbers, strict=True)]
    else:
        numbers, edges = np.histogram(values, bins=HISTOGRAM_BARS)
        bars = [
            {"from": float(low), "to": float(high), "count": int(n)}
            for low, high, n in zip(edges[:-1], edges[1:], numbers, strict=True)
        ]
    lowest, highest, mean = float(distinct[0]), float(distinct[-1]), float(values.mean())
    return {"known": len(values), "distinct": len(distinct), "mean": mean, "min": lowest, "max": highest, "histogram": bars}


def _correct(groups: Iterable[_GroupCounts]) -> dict[str, Any]:
    groups = list(groups)
    correct, known = sum(group.correct for group in groups), sum(group.known for group in groups)
    return {"count": correct, "known": known, "share": _share(correct, known)}


def _by_number(counts: Counter[int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}


def _verdict(candidates: Iterable[Candidate]) -> str:
    found = {candidate.vqa_correct for candidate in candidates}
    if not found:
        return "none"
    return "all correct" if found == {1} else "all wrong" if found == {0} else "mixed or unknown"


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _warnings(report: dict[str, Any], notes: Notes) -> Iterator[str]:
    unknown, candidates = report["modes"]["unknown"]["count"], report["candidates"]
    if unknown:
        yield f"{unknown} of {candidates} candidates do not say how they were scored (vqa_eval_mode)"
    if notes.scores_of_errors_dropped:
        yield f"{notes.scores_of_errors_dropped} scores of candidates whose scoring failed were dropped: they are unknown, not 0"
    if "from_pointers" in report["pool_sources"]:
        yield "the file names no pools; the ids of all its pointers stand in for them (from_pointers)"
    if report["pools_with_their_query"]:
        yield f"{report['pools_with_their_query']} pools hold their own query"
    if not report["fingerprint"]:
        yield "the file has no fingerprint: nothing tells which data, VLM and metric its scores come from"
    if notes.ignored_fields:
        yield f"fields that are not part of the format were ignored: {', '.join(sorted(notes.ignored_fields))}"
