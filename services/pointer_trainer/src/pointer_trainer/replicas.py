"""Scorers that do the same work: one process for each GPU, say."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from leverplus.client import ONCE, ScorerClient
from leverplus.errors import DeadlineExceeded, LeverPlusError, QueueFull, Unavailable
from leverplus.scoring import ScorePlanResponse, ScoreRequest, ScoreResponse

logger = logging.getLogger(__name__)

PASSING = (Unavailable, QueueFull, DeadlineExceeded)
"""What may be over when the same is asked again."""
_REST_S = 5.0
"""How long one that was away is not asked while another is there."""


@dataclass
class _Replica:
    client: ScorerClient
    under_way: int = 0
    turn: int = 0
    rests_until: float = 0.0


class Replicas:
    """A request goes to the scorer that has the fewest of ours under way; from one that is away, full or failing on to the next.

    Safe for several threads. InvalidConfig where one of `urls` is no URL of a service.
    """

    def __init__(self, urls: Sequence[str], *, key: SecretStr | None = None, rest_s: float = _REST_S, first: int = 0) -> None:
        """Of those that have nothing of ours the one at `first`, counted round, is asked first: jobs that begin with another each
        do not all begin with the same."""
        told = None if key is None else key.get_secret_value()
        start = first % max(len(urls), 1)
        # Once: another replica is a better second try than the same one.
        clients = [ScorerClient(url, key=told, retry=ONCE) for url in (*urls[start:], *urls[:start])]
        self._replicas = [_Replica(client) for client in clients]
        self._rest_s = rest_s
        self._turns = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._replicas)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for replica in self._replicas:
            replica.client.close()

    def score(self, request: ScoreRequest) -> ScoreResponse:
        """Raises what a scorer answers that is no fault of its own; where all have faults, one that may pass if there is such."""
        asked: list[_Replica] = []
        failures: list[LeverPlusError] = []
        while (replica := self._take(asked, resting_too=not any(isinstance(each, QueueFull) for each in failures))) is not None:
            try:
                return replica.client.score(request)
            except QueueFull as exc:
                failures.append(exc)
            except LeverPlusError as exc:
                if exc.status < 500:
                    raise
                # Away, too slow, or broken: a batch that fails on one device may do on another.
                replica.rests_until = time.monotonic() + self._rest_s
                failures.append(exc)
            finally:
                with self._lock:
                    replica.under_way -= 1
            asked.append(replica)
        raise next((each for each in failures if isinstance(each, PASSING)), failures[-1])

    def rates(self) -> list[float | None]:
        """Pointers a second of each scorer that answers, as measured since it started; None where it has measured nothing."""
        rates: list[float | None] = []
        for replica in self._replicas:
            try:
                rates.append(replica.client.stats()["pointers_per_engine_s"])
            except LeverPlusError as exc:
                logger.warning("the rate of %s is not known: %s", replica.client.base_url, exc)
        return rates

    def plan(self, request: ScoreRequest) -> ScorePlanResponse:
        """What the request would take; by the first scorer that answers, for all of them share their scores.

        Raises what it answers, or the last one's error.
        """
        failure: LeverPlusError | None = None
        for replica in self._replicas:
            try:
                return replica.client.score_plan(request)
            except LeverPlusError as exc:
                if exc.status < 500:
                    raise
                failure = exc
        assert failure is not None, "there is at least one replica"
        raise failure

    def _take(self, asked: Sequence[_Replica], *, resting_too: bool) -> _Replica | None:
        """The next to ask; one that rests, if at all, only when no other is left."""
        with self._lock:
            now = time.monotonic()
            others = [replica for replica in self._replicas if replica not in asked]
            awake = [replica for replica in others if replica.rests_until <= now]
            candidates = awake or (others if resting_too else [])
            if not candidates:
                return None
            chosen = min(candidates, key=lambda replica: (replica.under_way, replica.turn))
            self._turns += 1
            chosen.under_way, chosen.turn = chosen.under_way + 1, self._turns
            return chosen
