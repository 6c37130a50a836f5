"""Scoring: look up what is committed, let the engine answer the rest, commit it, apply the metric."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import OperationalError

from leverplus.errors import DeadlineExceeded, QueueFull, Unavailable
from leverplus.fingerprint import digest
from leverplus.metric import extract_answer, metric_fingerprint, score_answer
from leverplus.scoring import ScoredCandidate, ScoredQuery, ScoreRequest, ScoreResponse, ScoreStats
from leverplus.store import ScoreKey, ScoreStore
from vqa_scorer.batching import BatchWorker, Ticket
from vqa_scorer.engines import Engine, ScoringPrompt
from vqa_scorer.metrics import ScorerMetrics
from vqa_scorer.planning import OpenDatasets, ReadableImages, ScorePlan, build_prompts, plan_request

_CHARACTERS_PER_IMAGE = 200


@dataclass(frozen=True)
class WorkKey:
    """A pointer under way; the generation is the process's own."""

    dataset_digest: str
    score: ScoreKey


class ScoringService:
    """One engine, one store, many concurrent requests.

    `batch_size` prompts go to the engine at a time, `queue_size` pointers may wait, and a request is answered within
    `deadline_s`. `load_failed` is called with the reason when the engine could not be loaded.
    """

    def __init__(
        self,
        engine: Engine,
        datasets: OpenDatasets,
        open_scores: Callable[[], ScoreStore],
        *,
        batch_size: int,
        queue_size: int,
        deadline_s: float,
        load_failed: Callable[[str], None] | None = None,
    ) -> None:
        self._engine = engine
        self._datasets = datasets
        self._open_scores = open_scores
        self._store: ScoreStore | None = None
        self._deadline_s = deadline_s
        self._images = ReadableImages()
        self._generation: dict[str, Any] = {}
        self._generation_digest = ""
        self._reserved: frozenset[str] = frozenset()
        self.worker: BatchWorker[WorkKey, ScoringPrompt] = BatchWorker(
            self._process,
            load=self._load,
            batch_size=batch_size,
            capacity=queue_size,
            length=rough_length,
            load_failed=load_failed,
        )
        self.metrics = ScorerMetrics(lambda: (self.worker.waiting, self.worker.in_progress, self.worker.capacity))

    @property
    def generation(self) -> Mapping[str, Any] | None:
        """The generation fingerprint; None until the engine is loaded."""
        return self._generation or None

    @property
    def scores(self) -> ScoreStore:
        assert self._store is not None, "opened before the worker is ready"
        return self._store

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Every text in the answer is committed before it is returned.

        Raises what `plan_request` and `build_prompts` raise, what `BatchWorker.submit` raises, DeadlineExceeded,
        GenerationFailed, Unavailable.
        A cancelled call gives its places in the queue back.
        """
        ticket: Ticket[WorkKey] | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                self.worker.require_ready()
                plan, committed, prompts = await asyncio.to_thread(self._prepare, request)
                ticket = self.worker.submit(prompts)
                generated = {key.score: text for key, text in (await ticket.texts()).items()}
        except TimeoutError:
            self.metrics.add(deadline_exceeded=1)
            raise DeadlineExceeded(what="scoring the request", limit_s=self._deadline_s) from None
        except asyncio.CancelledError:
            self.metrics.add(client_gone=1)
            raise
        except QueueFull:
            self.metrics.add(refused=1)
            raise
        finally:
            if ticket is not None:
                self.worker.abandon(ticket)
        response = await asyncio.to_thread(self._answer, plan, committed, generated)
        self.metrics.answered(response.stats)
        return response

    def _prepare(self, request: ScoreRequest) -> tuple[ScorePlan, dict[ScoreKey, str], dict[WorkKey, ScoringPrompt]]:
        plan = plan_request(request, self._datasets, self._reserved)
        keys = plan.keys()
        committed = self._committed(plan.opened.digest, keys)
        prompts = build_prompts(plan, (key for key in keys if key not in committed), self._images)
        return plan, committed, {WorkKey(plan.opened.digest, key): prompt for key, prompt in prompts.items()}

    def _answer(self, plan: ScorePlan, committed: Mapping[ScoreKey, str], generated: Mapping[ScoreKey, str]) -> ScoreResponse:
        flavour = plan.options.flavour
        modes: Counter[str] = Counter()
        cached = 0
        results: list[ScoredQuery] = []
        for query_id, pointers in plan.queries:
            answers = plan.opened.dataset.item(query_id).answers
            candidates: list[ScoredCandidate] = []
            for pointer in pointers:
                key = (query_id, pointer)
                cached += key in committed
                raw = committed[key] if key in committed else generated[key]
                predicted = extract_answer(raw)
                score = score_answer(predicted, answers, flavour)
                modes[score.mode] += 1
                candidates.append(
                    ScoredCandidate(
                        pointer=list(pointer),
                        vqa_raw_generation=raw,
                        vqa_pred_answer=predicted,
                        vqa_correct=score.correct,
                        vqa_acc_score=score.accuracy,
                        vqa_eval_mode=score.mode,
                    )
                )
            results.append(ScoredQuery(query_id=query_id, candidates=candidates))
        fingerprint = {
            "dataset": plan.opened.dataset.fingerprint(),
            "generation": self._generation,
            "metric": metric_fingerprint(flavour),
        }
        stats = ScoreStats(file=modes["file"], fallback=modes["fallback"], error=modes["error"], cached=cached)
        return ScoreResponse(fingerprint=fingerprint, results=results, stats=stats)

    def _load(self) -> None:
        self._store = self._open_scores()
        self._engine.load()
        self._reserved = self._engine.reserved_texts()
        self._generation = self._engine.generation_fingerprint()
        self._generation_digest = digest(self._generation)

    def _process(self, batch: Mapping[WorkKey, ScoringPrompt]) -> dict[WorkKey, str]:
        """Texts of a batch, committed. Looked up once more first: a key may have been committed since its request did so."""
        by_dataset: dict[str, list[ScoreKey]] = {}
        for key in batch:
            by_dataset.setdefault(key.dataset_digest, []).append(key.score)
        try:
            texts = self._read(by_dataset)
            pending = {key: prompt for key, prompt in batch.items() if key not in texts}
            if pending:
                started = time.perf_counter()
                written = self._engine.generate(list(pending.values()))
                seconds = time.perf_counter() - started
                self._commit(dict(zip(pending, written, strict=True)))
                self.metrics.add(generated=len(pending), batches=1, engine_seconds=seconds)
                # Another scorer on the same database may have committed a key first: what the store holds is the score.
                texts = self._read(by_dataset)
        except Exception:
            self.metrics.add(failed_batches=1)
            raise
        return texts

    def _read(self, by_dataset: Mapping[str, list[ScoreKey]]) -> dict[WorkKey, str]:
        return {
            WorkKey(dataset_digest, key): text
            for dataset_digest, keys in by_dataset.items()
            for key, text in self._committed(dataset_digest, keys).items()
        }

    def _committed(self, dataset_digest: str, keys: list[ScoreKey]) -> dict[ScoreKey, str]:
        try:
            return self.scores.committed(dataset_digest, self._generation_digest, keys)
        except OperationalError as exc:
            raise _database_away(exc) from exc

    def _commit(self, texts: Mapping[WorkKey, str]) -> None:
        by_dataset: dict[str, dict[ScoreKey, str]] = {}
        for key, text in texts.items():
            by_dataset.setdefault(key.dataset_digest, {})[key.score] = text
        try:
            for dataset_digest, rows in by_dataset.items():
                self.scores.commit(dataset_digest, self._generation_digest, rows)
        except OperationalError as exc:
            raise _database_away(exc) from exc


def rough_length(prompt: ScoringPrompt) -> int:
    """Characters of a prompt, by which alike ones are batched; a picture counts as many as a long question."""
    shots = (*prompt.demonstrations, prompt.query)
    return sum(_CHARACTERS_PER_IMAGE + len(shot.question) + len(shot.answer or "") for shot in shots)


def _database_away(exc: OperationalError) -> Unavailable:
    return Unavailable(what="the score database", reason=str(exc.orig), hint="nothing was scored; try again")
