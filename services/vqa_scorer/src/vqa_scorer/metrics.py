"""What the scorer counted since it started: one record behind GET /stats and /metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from leverplus.scoring import ScoreStats


@dataclass(frozen=True)
class Totals:
    """`file`, `fallback`, `error`, `cached`: candidates answered. `generated`: pointers that the VLM answered; `weighed`:
    pointers behind which it gave the probabilities of the query's answers."""

    file: int = 0
    fallback: int = 0
    error: int = 0
    cached: int = 0
    requests: int = 0
    refused: int = 0
    deadline_exceeded: int = 0
    client_gone: int = 0
    generated: int = 0
    weighed: int = 0
    batches: int = 0
    failed_batches: int = 0
    engine_seconds: float = 0.0


class ScorerMetrics(Collector):
    """Totals that several threads add to; itself a prometheus collector. `queue` gives (waiting, in progress, capacity)."""

    def __init__(self, queue: Callable[[], tuple[int, int, int]]) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._totals = Totals()
        self.started_at = time.time()

    @property
    def totals(self) -> Totals:
        return self._totals

    def add(self, **amounts: float) -> None:
        """Adds to the named fields of Totals."""
        with self._lock:
            self._totals = replace(
                self._totals, **{name: getattr(self._totals, name) + amount for name, amount in amounts.items()}
            )

    def answered(self, stats: ScoreStats) -> None:
        self.add(requests=1, file=stats.file, fallback=stats.fallback, error=stats.error, cached=stats.cached)

    def collect(self) -> Iterator[Metric]:
        totals = self._totals
        modes = CounterMetricFamily("vqa_scorer_candidates", "Candidates answered, by evaluation mode", labels=["mode"])
        for mode in ("file", "fallback", "error"):
            modes.add_metric([mode], getattr(totals, mode))
        yield modes
        refused = CounterMetricFamily("vqa_scorer_unanswered", "Requests that got no scores, by cause", labels=["cause"])
        for cause in ("refused", "deadline_exceeded", "client_gone"):
            refused.add_metric([cause], getattr(totals, cause))
        yield refused
        for name, text in (
            ("cached", "Candidates answered from the store"),
            ("generated", "Pointers that the VLM answered"),
            ("weighed", "Pointers behind which the VLM gave probabilities of answers"),
            ("batches", "Batches that the engine ran"),
            ("failed_batches", "Batches that failed"),
            ("engine_seconds", "Seconds spent on batches"),
        ):
            yield CounterMetricFamily(f"vqa_scorer_{name}", text, value=getattr(totals, name))
        waiting, in_progress, capacity = self._queue()
        yield GaugeMetricFamily("vqa_scorer_queue_waiting", "Pointers that wait for a batch", value=waiting)
        yield GaugeMetricFamily("vqa_scorer_queue_in_progress", "Pointers in the batch that runs", value=in_progress)
        yield GaugeMetricFamily("vqa_scorer_queue_capacity", "Pointers that may wait", value=capacity)
