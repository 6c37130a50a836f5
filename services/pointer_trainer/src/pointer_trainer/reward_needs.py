"""Before a sweep is accepted: whether the data hold what its rewards are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from leverplus.data_root import DataRoot
from leverplus.errors import InvalidRlData
from leverplus.ids import ItemId
from leverplus.rewards import RewardConfig, compute_rewards, unknown_fields
from leverplus.rl_data import Candidate, QueryRecord, stream

_Group = tuple[ItemId, int]
"""Query and number of shots."""


@dataclass
class _Need:
    """What the queries read so far say of one reward."""

    reward: RewardConfig
    is_known: bool = False
    first_unknown: str | None = None
    refused: dict[_Group, str] = field(default_factory=dict[_Group, str])
    taken: set[_Group] = field(default_factory=set[_Group])

    @property
    def is_settled(self) -> bool:
        """Whether no further query can change the answer; hybrid refuses a job for one group, and the last may be it."""
        return self.is_known and self.reward.mode != "hybrid"

    def look_at(self, record: QueryRecord) -> None:
        groups: dict[int, list[Candidate]] = {}
        for candidate in record.candidates:
            groups.setdefault(len(candidate.pointer), []).append(candidate)
        groups.pop(0, None)  # zero-shot rows are not trained on
        for shots, group in groups.items():
            try:
                rewards = compute_rewards(group, self.reward)
            except InvalidRlData as exc:
                self.refused.setdefault((record.query_id, shots), f"query {record.query_id}, {shots} shots: {exc.detail}")
                continue
            self.taken.add((record.query_id, shots))
            self.is_known = self.is_known or any(reward is not None for reward in rewards)
            if not self.is_known and self.first_unknown is None:
                lacking = " and ".join(unknown_fields(group[0], self.reward))
                self.first_unknown = f"query {record.query_id}, pointer {list(group[0].pointer)}: {lacking} unknown"

    def reason(self) -> str | None:
        """Why nothing can be trained on this reward; None where it can."""
        # A second file may have what the first lacks.
        for group, reason in self.refused.items():
            if group not in self.taken:
                return reason
        if self.is_known:
            return None
        first = f", e.g. {self.first_unknown}" if self.first_unknown else ""
        return f"reward mode {self.reward.mode}: no candidate with demonstrations has a known reward{first}"


def unmet_needs(root: DataRoot, rl_data: Sequence[str], rewards: Iterable[RewardConfig]) -> dict[RewardConfig, str]:
    """Of these rewards those that the RL data cannot give, each with the reason.

    Files are read no further than needed: to the end for hybrid, which wants an InfoScore in every group. Raises what reading
    them raises, InvalidConfig for an `info_field` that candidates do not have.
    """
    needs = [_Need(reward) for reward in dict.fromkeys(rewards)]
    records = (record for rl_data_id in rl_data for record in stream(root.rl_data(rl_data_id)).records)
    for record in records:
        for need in (open_needs := [need for need in needs if not need.is_settled]):
            need.look_at(record)
        if not open_needs:
            break
    return {need.reward: reason for need in needs if (reason := need.reason()) is not None}
