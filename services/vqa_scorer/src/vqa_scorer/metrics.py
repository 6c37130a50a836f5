"""What the scorer counted since it started: one record behind GET /stats and /metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from leverplus.scoring import FALLBACK_WARNING_SHARE, ScoreStats, fallback_warning
from vqa_scorer.engines import EngineCounts

logger = logging.getLogger(__name__)

Phase = Literal["prepare", "commit", "answer"]

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_RECENT_CANDIDATES = 1_000
_FEWEST_CANDIDATES = 100


@dataclass(frozen=True)
class Totals:
    """`file`, `fallback`, `error`, `cached`: candidates answered. `generated`: pointers that the VLM answered; `weighed`:
    pointers behind which it gave the probabilities of the query's answers. Seconds are summed over threads: `prepare` is
    reading requests, committed scores and images, `commit` the database's writing, `answer` the metric."""

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
    prepare_seconds: float = 0.0
    commit_seconds: float = 0.0
    answer_seconds: float = 0.0


class FallbackWatch:
    """The fallback's share of the newest answers that together hold at least 1,000 candidates; unknown below 100.

    Logs a warning whenever the share comes to stand above FALLBACK_WARNING_SHARE. Not safe for several threads.
    """

    def __init__(self) -> None:
        self._answers: deque[ScoreStats] = deque()
        self._newest = ScoreStats.total([])
        self.warning: str | None = None

    @property
    def share(self) -> float | None:
        known = _candidates(self._newest) >= _FEWEST_CANDIDATES
        return self._newest.share["fallback"] if known else None

    def add(self, answer: ScoreStats) -> None:
        self._answers.append(answer)
        newest = ScoreStats.total([self._newest, answer])
        while _candidates(newest) - _candidates(self._answers[0]) >= _RECENT_CANDIDATES:
            newest = newest.without(self._answers.popleft())
        self._newest = newest
        told = self.warning is not None
        above = self.share is not None and self.share > FALLBACK_WARNING_SHARE
        self.warning = f"of the newest answers {fallback_warning(newest.fallback, _candidates(newest))}" if above else None
        if self.warning is not None and not told:
            logger.warning(self.warning)


class ScorerMetrics(Collector):
    """Totals that several threads add to; itself a prometheus collector.

    `queue` gives (waiting, in progress, capacity), `engine` what the engine counted, None where it does not count.
    """

    def __init__(
        self, queue: Callable[[], tuple[int, int, int]], engine: Callable[[], EngineCounts | None] = lambda: None
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._lock = threading.Lock()
        self._totals = Totals()
        self._recent = FallbackWatch()
        self._batch_sizes = Histogram(
            "vqa_scorer_batch_size", "Pointers in a batch that the engine ran", buckets=_BATCH_SIZES, registry=None
        )
        self.started_at = time.time()

    @property
    def totals(self) -> Totals:
        return self._totals

    @property
    def pointers_per_engine_s(self) -> float | None:
        """Generated and weighed pointers by the time the engine worked; None before the first."""
        done = self._totals.generated + self._totals.weighed
        return done / self._totals.engine_seconds if done and self._totals.engine_seconds else None

    @property
    def engine(self) -> EngineCounts | None:
        return self._engine()

    @property
    def recent_fallback_share(self) -> float | None:
        return self._recent.share

    @property
    def warnings(self) -> list[str]:
        """What an operator should know now."""
        return [] if self._recent.warning is None else [self._recent.warning]

    def add(self, **amounts: float) -> None:
        """Adds to the named fields of Totals."""
        with self._lock:
            self._totals = replace(
                self._totals, **{name: getattr(self._totals, name) + amount for name, amount in amounts.items()}
            )

    @contextmanager
    def phase(self, name: Phase) -> Generator[None]:
        """Adds the seconds that its body takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{f"{name}_seconds": time.perf_counter() - started})

    def batch(self, size: int) -> None:
        self._batch_sizes.observe(size)

    def answered(self, stats: ScoreStats, *, requests: int = 1) -> None:
        """Counts an answer's candidates; a part of an answer counts as no request."""
        self.add(requests=requests, file=stats.file, fallback=stats.fallback, error=stats.error, cached=stats.cached)
        if _candidates(stats):
            with self._lock:
                self._recent.add(stats)

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
        yield from self._batch_sizes.collect()
        yield from self._gauges()
        yield from _phases_and_caches(totals, self._engine())

    def _gauges(self) -> Iterator[Metric]:
        waiting, in_progress, capacity = self._queue()
        yield GaugeMetricFamily("vqa_scorer_queue_waiting", "Pointers that wait for a batch", value=waiting)
        yield GaugeMetricFamily("vqa_scorer_queue_in_progress", "Pointers in the batch that runs", value=in_progress)
        yield GaugeMetricFamily("vqa_scorer_queue_capacity", "Pointers that may wait", value=capacity)
        share = self._recent.share
        if share is not None:
            yield GaugeMetricFamily("vqa_scorer_recent_fallback_share", "Of the newest 1,000 candidates", value=share)
        above = float(self._recent.warning is not None)
        yield GaugeMetricFamily("vqa_scorer_fallback_warning", "1 while that share is above a tenth", value=above)


def _phases_and_caches(totals: Totals, engine: EngineCounts | None) -> Iterator[Metric]:
    phases = CounterMetricFamily("vqa_scorer_phase_seconds", "Seconds by phase, summed over threads", labels=["phase"])
    for name in ("prepare", "commit", "answer"):
        phases.add_metric([name], getattr(totals, f"{name}_seconds"))
    hits = CounterMetricFamily("vqa_scorer_cache_hits", "What was found", labels=["cache"])
    misses = CounterMetricFamily("vqa_scorer_cache_misses", "What was not found, and made", labels=["cache"])
    hits.add_metric(["scores"], totals.cached)
    misses.add_metric(["scores"], totals.file + totals.fallback + totals.error - totals.cached)
    if engine is not None:
        for name, seconds in engine.seconds.items():
            phases.add_metric([name], seconds)
        for cache, hit, missed in (
            ("images", engine.image_hits, engine.images_encoded),
            ("first_demonstrations", engine.prefix_hits, engine.prefix_misses),
        ):
            hits.add_metric([cache], hit)
            misses.add_metric([cache], missed)
        yield CounterMetricFamily("vqa_scorer_prompts", "Prompts that the engine read", value=engine.prompts)
        yield CounterMetricFamily("vqa_scorer_tokens", "Tokens of these prompts, those of images included", value=engine.tokens)
        yield CounterMetricFamily("vqa_scorer_images", "Images that the engine encoded", value=engine.images_encoded)
    yield phases
    yield hits
    yield misses


def _candidates(stats: ScoreStats) -> int:
    return stats.file + stats.fallback + stats.error
