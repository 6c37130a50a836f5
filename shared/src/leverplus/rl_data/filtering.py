"""Parts of RL data, a query at a time, with the counts of what was left out and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from leverplus.errors import InvalidConfig
from leverplus.random_order import derive_seed
from leverplus.rl_data.dropped import Dropped
from leverplus.rl_data.records import Candidate, QueryRecord


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold; None and False ask for nothing. Pools stay whole.

    Of a candidate: its `eval_modes`, `gen_methods`, `shots`; `no_fallback`: not scored by the fallback.
    Of a group (the candidates of one query with equally many demonstrations; zero-shot rows are none, and stay as long as a
    group of their query does), looked at after these:
      `has_positive`: one of it has vqa_correct 1.
      `balanced` (low, high), 0 <= low <= high <= 1: the share of positives among its candidates of known correctness lies within.
      `down_sample`: a group outside `balanced` is brought within by leaving out as few as possible of the kind there are too many
      of, chosen by `seed` and the pointers alone; a group that lacks either kind cannot be, and goes.
    Of a query: `drop_flat`: two of its pointers of equal length differ in accuracy.
    """

    eval_modes: Collection[str] | None = None
    gen_methods: Collection[str] | None = None
    shots: Collection[int] | None = None
    no_fallback: bool = False
    has_positive: bool = False
    balanced: tuple[float, float] | None = None
    down_sample: bool = False
    seed: int = 0
    drop_flat: bool = False

    def __post_init__(self) -> None:
        if self.balanced is not None and not 0 <= self.balanced[0] <= self.balanced[1] <= 1:
            raise InvalidConfig(field="balanced", reason=f"is {self.balanced}, expected two shares in 0 to 1, the lower first")
        if self.down_sample and self.balanced is None:
            raise InvalidConfig(field="down_sample", reason="brings groups within the bounds of `balanced`, which is not stated")

    def to_json(self) -> dict[str, Any]:
        """The conditions that were stated."""
        stated = {name: value for name, value in asdict(self).items() if value not in (None, False) and name != "seed"}
        return {**stated, "seed": self.seed} if self.down_sample else stated


def filter_records(records: Iterable[QueryRecord], conditions: Filter, dropped: Dropped) -> Iterator[QueryRecord]:
    """The records with the candidates that meet the conditions, and of these records those that still have one.

    `dropped` is told what goes; the reasons count candidates, a query that had none is counted by its own.
    """
    for record in records:
        kept = _keep_candidates(record.candidates, conditions, dropped)
        if conditions.has_positive or conditions.balanced is not None:
            kept = _keep_groups(record, kept, conditions, dropped)
        if kept and conditions.drop_flat and _is_flat(kept):
            dropped.leave_out("query is flat: no two pointers of equal length differ in accuracy", len(kept))
            kept = ()
        if kept:
            yield replace(record, candidates=kept)
        else:
            dropped.queries += 1
            if not record.candidates:
                dropped.reasons["query has no candidates"] += 1


def _keep_candidates(candidates: Sequence[Candidate], conditions: Filter, dropped: Dropped) -> tuple[Candidate, ...]:
    asked: list[tuple[str, Collection[Any] | None, Callable[[Candidate], Any]]] = [
        ("vqa_eval_mode", conditions.eval_modes, lambda candidate: candidate.vqa_eval_mode),
        ("gen_method", conditions.gen_methods, lambda candidate: candidate.gen_method),
        ("number of shots", conditions.shots, lambda candidate: len(candidate.pointer)),
    ]
    kept: list[Candidate] = []
    for candidate in candidates:
        failed = next((name for name, wanted, value in asked if wanted is not None and value(candidate) not in wanted), None)
        if failed is not None:
            dropped.leave_out(f"{failed} is not among those asked for")
        elif conditions.no_fallback and candidate.vqa_eval_mode == "fallback":
            dropped.leave_out("scored by the fallback")
        else:
            kept.append(candidate)
    return tuple(kept)


def _keep_groups(
    record: QueryRecord, candidates: Sequence[Candidate], conditions: Filter, dropped: Dropped
) -> tuple[Candidate, ...]:
    groups: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(len(candidate.pointer), []).append(candidate)
    zero_shot = groups.pop(0, [])
    kept: set[int] = set()
    for group in groups.values():
        if conditions.has_positive and not any(candidate.vqa_correct == 1 for candidate in group):
            dropped.leave_out("group has no positive", len(group))
            continue
        if conditions.balanced is not None:
            group = _balance(record, group, conditions.balanced, conditions, dropped)
        kept.update(map(id, group))
    if kept:
        kept.update(map(id, zero_shot))
    elif zero_shot:
        dropped.leave_out("zero-shot row of a query without a group", len(zero_shot))
    return tuple(candidate for candidate in candidates if id(candidate) in kept)


def _balance(
    record: QueryRecord, group: list[Candidate], bounds: tuple[float, float], conditions: Filter, dropped: Dropped
) -> list[Candidate]:
    positives = [candidate for candidate in group if candidate.vqa_correct == 1]
    negatives = [candidate for candidate in group if candidate.vqa_correct == 0]
    if _is_within(len(positives), len(negatives), bounds):
        return group
    if conditions.down_sample and positives and negatives:
        low, high = bounds
        has_too_many = len(positives) / (len(positives) + len(negatives)) > high
        many, few = (positives, negatives) if has_too_many else (negatives, positives)
        # At most `limit` of the kind that there are too many of, as a share; 1e-9: 0.6 * 2 / 0.4 must be 3.
        limit = high if has_too_many else 1 - low
        number = math.floor(limit * len(few) / (1 - limit) + 1e-9)
        left = (number, len(few)) if has_too_many else (len(few), number)
        if number and _is_within(*left, bounds):
            ordered = sorted(many, key=lambda one: derive_seed(conditions.seed, record.query_id, *one.pointer))
            gone = set(map(id, ordered[number:]))
            dropped.leave_out("left out to balance its group", len(gone))
            return [candidate for candidate in group if id(candidate) not in gone]
    dropped.leave_out("group has a share of positives outside the bounds", len(group))
    return []


def _is_within(positives: int, negatives: int, bounds: tuple[float, float]) -> bool:
    low, high = bounds
    known = positives + negatives
    return known > 0 and low - 1e-9 <= positives / known <= high + 1e-9


def _is_flat(candidates: Sequence[Candidate]) -> bool:
    accuracies: dict[int, set[float]] = {}
    for candidate in candidates:
        if candidate.vqa_acc_score is not None:
            accuracies.setdefault(len(candidate.pointer), set()).add(candidate.vqa_acc_score)
    return all(len(values) < 2 for values in accuracies.values())
