"""From RL data to what is trained on: rewards, positions in the pool, groups.

A row of a batch is a query, so that the selector encodes a query and its pool once; a group is (query, shots), and all that is
normalised (weights, advantages, probabilities) is normalised inside a group. `RlBatch.groups` turns the first into the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverplus.errors import IdOutsidePool, InvalidRlData
from leverplus.ids import ItemId, Pointer
from leverplus.rewards import RewardConfig, compute_rewards, unknown_fields
from leverplus.rl_data import Candidate, QueryRecord, RlData, merge_duplicates, without_propensities

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, slots=True)
class QueryExample:
    """What one query contributes: C candidates of 1 to S shots with known rewards, as positions in its pool of K."""

    query_id: ItemId
    pool: NDArray[np.int64]
    """[K] item ids in pool order."""
    positions: NDArray[np.int64]
    """[C, S], −1 pads a shorter pointer."""
    rewards: NDArray[np.float32]
    """[C], raw."""
    by_beam: NDArray[np.bool_] | None = None
    """[C], whether a beam search found the candidate; None: none was."""

    def beams(self) -> QueryExample | None:
        """The query with those of its candidates alone that are beams; None if none is."""
        if self.by_beam is None or not self.by_beam.any():
            return None
        kept = self.by_beam
        return replace(self, positions=self.positions[kept], rewards=self.rewards[kept], by_beam=kept[kept])


@dataclass
class DataCounts:
    """What was read and what was left out, and why. `modes` counts every candidate by its vqa_eval_mode."""

    queries: int = 0
    queries_without_candidates: int = 0
    groups: int = 0
    groups_of_equal_rewards: int = 0
    candidates: int = 0
    candidates_used: int = 0
    zero_shot: int = 0
    unknown_reward: int = 0
    skipped_fallback: int = 0
    duplicates: int = 0
    first_unknown: str | None = None
    """The first candidate without a reward: its query, pointer, and the fields that the reward needs and it lacks."""
    modes: Counter[str] = field(default_factory=Counter[str])

    def to_json(self) -> dict[str, float | int | None]:
        """All counts, and the shares of file, fallback, error and unknown among all candidates (None without candidates)."""
        counts: dict[str, float | int | None] = {
            name: getattr(self, name)
            for name in ("queries", "queries_without_candidates", "groups", "groups_of_equal_rewards", "candidates",
                         "candidates_used", "zero_shot", "unknown_reward", "skipped_fallback", "duplicates")
        }  # fmt: skip
        for mode in ("file", "fallback", "error", "unknown"):
            counts[f"{mode}_share"] = self.modes[mode] / self.candidates if self.candidates else None
        return counts


class Groups(NamedTuple):
    """The G groups of a batch: index into its rows, candidates of the group, its number of shots."""

    rows: Int[Tensor, "G"]
    mask: Bool[Tensor, "G C"]
    shots: Int[Tensor, "G"]


@dataclass(frozen=True, slots=True)
class RlBatch:
    """B queries, padded to the largest pool (K), number of candidates (C) and number of shots (S) among them."""

    query_id: Int[Tensor, "B"]
    query_emb: Float[Tensor, "B d"]
    cand_emb: Float[Tensor, "B K d"]
    pool_mask: Bool[Tensor, "B K"]
    pointers: Int[Tensor, "B C S"]
    """Positions; −1 pads a shorter pointer and fills a missing candidate."""
    rewards_raw: Float[Tensor, "B C"]
    mask: Bool[Tensor, "B C"]
    logprobs: Float[Tensor, "B C"] | None = None
    """log π_old where an objective needs it."""

    def groups(self) -> Groups:
        shots = (self.pointers >= 0).sum(-1)
        rows: list[Tensor] = []
        masks: list[Tensor] = []
        sizes: list[Tensor] = []
        for size in shots[self.mask].unique().tolist():
            member = self.mask & (shots == size)
            filled = member.any(-1).nonzero()[:, 0]
            rows.append(filled)
            masks.append(member[filled])
            sizes.append(torch.full_like(filled, size))
        return Groups(torch.cat(rows), torch.cat(masks), torch.cat(sizes))


def build_examples(
    rl_data: Sequence[RlData], reward: RewardConfig, *, skip_fallback: bool = False
) -> tuple[list[QueryExample], DataCounts]:
    """One example a query, sorted by query id, and the counts of what was left out.

    Files are joined by query, equal pointers merged (Conflict where their results contradict). Left out and counted:
    zero-shot rows (log π is 0), candidates whose reward is unknown, with `skip_fallback` those scored by the fallback. A query
    with nothing left gives no example.
    InvalidRlData where two files give one query different pools; IdOutsidePool for a pointer that its pool does not hold.
    """
    counts = DataCounts()
    examples: list[QueryExample] = []
    for query_id, records in sorted(_by_query(rl_data).items()):
        counts.queries += 1
        example = _build_example(query_id, records, reward, skip_fallback, counts)
        if example is None:
            counts.queries_without_candidates += 1
        else:
            examples.append(example)
    return examples, counts


def _by_query(rl_data: Sequence[RlData]) -> dict[ItemId, list[QueryRecord]]:
    found: dict[ItemId, list[QueryRecord]] = {}
    for data in rl_data:
        for record in data.records:
            found.setdefault(record.query_id, []).append(record)
    return found


def _build_example(
    query_id: ItemId, records: Sequence[QueryRecord], reward: RewardConfig, skip_fallback: bool, counts: DataCounts
) -> QueryExample | None:
    pool = records[0].candidate_pool_ids
    for record in records[1:]:
        if record.candidate_pool_ids != pool:
            raise InvalidRlData(
                file="RL data", query=query_id, field="candidate_pool_ids", reason="two files give this query different pools"
            )
    rows = [candidate for record in records for candidate in record.candidates]
    # Training looks at no propensity, and each round of proposals has a mixture of its own.
    candidates = merge_duplicates(rows if len(records) == 1 else without_propensities(rows))
    counts.candidates += len(rows)
    counts.duplicates += len(rows) - len(candidates)
    counts.modes.update(candidate.vqa_eval_mode for candidate in rows)
    used: list[Candidate] = []
    rewards: list[float] = []
    for group in _group_by_shots(candidates, skip_fallback, counts).values():
        scored = list(zip(group, _rewards(group, reward, query_id), strict=True))
        known = [(candidate, value) for candidate, value in scored if value is not None]
        if counts.first_unknown is None and (lacking := next((one for one, value in scored if value is None), None)):
            fields = " and ".join(unknown_fields(lacking, reward))
            counts.first_unknown = (
                f"query {query_id}, pointer {list(lacking.pointer)}: {fields} unknown, which reward mode {reward.mode!r} needs"
            )
        counts.unknown_reward += len(group) - len(known)
        if not known:
            continue
        values = [value for _, value in known]
        counts.groups += 1
        counts.groups_of_equal_rewards += min(values) == max(values)
        used += [candidate for candidate, _ in known]
        rewards += values
    if not used:
        return None
    counts.candidates_used += len(used)
    return QueryExample(
        query_id=query_id,
        pool=np.array(pool, dtype=np.int64),
        positions=_positions([candidate.pointer for candidate in used], pool, query_id),
        rewards=np.array(rewards, dtype=np.float32),
        by_beam=np.array([candidate.gen_method == "beam" for candidate in used]),
    )


def _rewards(group: Sequence[Candidate], reward: RewardConfig, query_id: ItemId) -> list[float | None]:
    try:
        return compute_rewards(group, reward)
    except InvalidRlData as exc:
        raise InvalidRlData(f"query {query_id}: {exc.detail}", query=query_id, **exc.context) from exc


def _group_by_shots(candidates: Sequence[Candidate], skip_fallback: bool, counts: DataCounts) -> dict[int, list[Candidate]]:
    """Candidates that may enter a policy loss, by number of shots, in file order."""
    groups: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        if not candidate.pointer:
            counts.zero_shot += 1
        elif skip_fallback and candidate.vqa_eval_mode == "fallback":
            counts.skipped_fallback += 1
        else:
            groups.setdefault(len(candidate.pointer), []).append(candidate)
    return dict(sorted(groups.items()))


def _positions(pointers: Sequence[Pointer], pool: Sequence[ItemId], query_id: ItemId) -> NDArray[np.int64]:
    place = {item_id: position for position, item_id in enumerate(pool)}
    positions = np.full((len(pointers), max(map(len, pointers))), -1, dtype=np.int64)
    for row, pointer in enumerate(pointers):
        for step, item_id in enumerate(pointer):
            if item_id not in place:
                raise IdOutsidePool(
                    file="RL data", query=query_id, field=f"pointer {list(pointer)}", item_id=item_id, pool_size=len(pool)
                )
            positions[row, step] = place[item_id]
    return positions
