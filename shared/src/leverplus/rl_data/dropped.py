"""What was left out of RL data, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Dropped:
    """Candidates and whole queries that were left out. `reasons`: why, and how many rows or queries it concerned."""

    candidates: int = 0
    queries: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])

    def leave_out(self, reason: str, candidates: int = 1) -> None:
        self.candidates += candidates
        self.reasons[reason] += candidates

    def to_json(self) -> dict[str, Any]:
        return {"candidates": self.candidates, "queries": self.queries, "reasons": dict(self.reasons.most_common())}
