"""What came of requests to processes that are killed: which answers are right, which failures a kill explains."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["answered", "refused", "not accepted", "cut off", "wrong"]
AROUND_KILL_S = 1.0
"""A kill explains what failed while its service was away, and this much before and after."""

_BROKEN: dict[str, Outcome] = {
    "ConnectError": "not accepted",
    "ReadError": "cut off",
    "WriteError": "cut off",
    "RemoteProtocolError": "cut off",
}


@dataclass(frozen=True)
class Answer:
    """`status` None: none came; `failure` is the name of the connection's error then."""

    status: int | None
    media_type: str = ""
    body: bytes = b""
    failure: str = ""

    @classmethod
    def none(cls, error: Exception) -> Answer:
        return cls(None, failure=type(error).__name__)


@dataclass
class Account:
    """`answers`: what was answered first for each query of the selector; `scores`: each raw text that was shown."""

    answers: dict[str, Any] = field(default_factory=dict[str, Any])
    scores: dict[tuple[int, str], str] = field(default_factory=dict[tuple[int, str], str])
    outcomes: Counter[Outcome] = field(default_factory=Counter[Outcome])
    by_kind: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    _outages: dict[str, list[list[float]]] = field(default_factory=dict[str, list[list[float]]])
    _times: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def down(self, service: str, at: float) -> None:
        self._outages.setdefault(service, []).append([at, float("inf")])

    def up(self, service: str, at: float) -> None:
        self._outages[service][-1][1] = at

    def add(self, kind: str, service: str, begun: float, ended: float, answer: Answer) -> None:
        outcome = self._judge(kind, service, begun, ended, answer)
        self.outcomes[outcome] += 1
        self.by_kind[f"{kind}: {outcome}"] += 1
        if outcome == "wrong":
            self.wrong.append(f"{kind}: {answer.status} {answer.failure} {answer.body[:200]!r}")
        if outcome == "answered":
            self._times.append((begun, ended))

    def _judge(self, kind: str, service: str, begun: float, ended: float, answer: Answer) -> Outcome:
        is_explained = self._was_down((service,), begun, ended)
        if answer.status is None:
            if not is_explained:
                return "wrong"
            return _BROKEN.get(answer.failure, "wrong")
        if answer.status == 200:
            return "answered" if self._is_consistent(kind, answer.body) else "wrong"
        is_clean = answer.status in (429, 503) and answer.media_type == "application/problem+json"
        return "refused" if is_clean else "wrong"

    def _is_consistent(self, kind: str, body: bytes) -> bool:
        """Same query, same demonstrations; same pointer, same text."""
        document: dict[str, Any] = json.loads(body)
        if kind == "score":
            return all(
                self.scores.setdefault((query["query_id"], ",".join(map(str, each["pointer"]))), each["vqa_raw_generation"])
                == each["vqa_raw_generation"]
                for query in document["results"]
                for each in query["candidates"]
            )
        if kind == "select again":
            return self.answers.setdefault(str(document["query_id"]), document["pointer"]) == document["pointer"]
        if kind == "select many":
            found: list[dict[str, Any]] = document["results"]
            return all(self.answers.setdefault(str(each["query_id"]), each["pointer"]) == each["pointer"] for each in found)
        return True

    def _was_down(self, services: tuple[str, ...], begun: float, ended: float) -> bool:
        return any(
            begun <= back + AROUND_KILL_S and ended >= gone - AROUND_KILL_S
            for service in services
            for gone, back in self._outages.get(service, [])
        )

    def calm_latencies_s(self) -> list[float]:
        """Of answers while nothing was away."""
        everyone = tuple(self._outages)
        return [ended - begun for begun, ended in self._times if not self._was_down(everyone, begun, ended)]

    def told(self) -> dict[str, Any]:
        return {"outcomes": dict(self.outcomes), "by_kind": dict(sorted(self.by_kind.items())), "first_wrong": self.wrong[:5]}
