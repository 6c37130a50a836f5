"""Scoring: look up what is committed, let the engine answer the rest, commit it, apply the metric."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy.exc import OperationalError

from leverplus.errors import DeadlineExceeded, QueueFull, Unavailable
from leverplus.fingerprint import digest
from leverplus.scoring import ScoreRequest, ScoreResponse
from leverplus.store import ScoreKey, ScoreStore
from vqa_scorer.answering import make_response
from vqa_scorer.batching import BatchWorker, Ticket
from vqa_scorer.claims import BatchClaims
from vqa_scorer.engines import Engine
from vqa_scorer.metrics import ScorerMetrics
from vqa_scorer.planning import OpenDatasets, ReadableImages, ScorePlan, build_prompts, plan_request
from vqa_scorer.work import Outcome, Task, WorkKey, grouped, rough_length


class ScoringService:
    """One engine, one store, many concurrent requests.

    `batch_size` prompts go to the engine at a time, `queue_size` pointers may wait, and a request is answered within
    `deadline_s`. Other scorers on the database take what this one has begun over `claim_expiry_s` after it was killed.
    `load_failed` is called with the reason when the engine could not be loaded.
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
        claim_expiry_s: float,
        load_failed: Callable[[str], None] | None = None,
    ) -> None:
        self._engine = engine
        self._datasets = datasets
        self._open_scores = open_scores
        self._store: ScoreStore | None = None
        self._claims: BatchClaims | None = None
        self._deadline_s = deadline_s
        self._claim_expiry_s = claim_expiry_s
        self._images = ReadableImages()
        self._generation: dict[str, Any] = {}
        self._generation_digest = ""
        self._reserved: frozenset[str] = frozenset()
        self.worker: BatchWorker[WorkKey, Task, Outcome] = BatchWorker(
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
        """Every text and probability in the answer is committed before it is returned.

        Raises what `plan_request` and `build_prompts` raise, what `BatchWorker.submit` raises, DeadlineExceeded,
        GenerationFailed, Unavailable.
        A cancelled call gives its places in the queue back.
        """
        ticket: Ticket[WorkKey, Outcome] | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                self.worker.require_ready()
                plan, committed, tasks = await asyncio.to_thread(self._prepare, request)
                ticket = self.worker.submit(tasks, places_a_pointer=plan.places_a_pointer)
                outcomes = {**committed, **await ticket.values()}
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
        response = await asyncio.to_thread(make_response, plan, outcomes, committed.keys(), self._generation)
        self.metrics.answered(response.stats)
        return response

    def _prepare(self, request: ScoreRequest) -> tuple[ScorePlan, dict[WorkKey, Outcome], dict[WorkKey, Task]]:
        """The plan, what of it is committed, and the tasks for the rest."""
        plan = plan_request(request, self._datasets, self._reserved, has_probabilities=self._engine.has_probabilities)
        dataset = plan.opened.digest
        wanted = [WorkKey(dataset, key) for key in plan.text_keys()]
        wanted += [WorkKey(dataset, key, "probabilities") for key in plan.weighed_keys()]
        committed = self._committed(wanted)
        pending = [key for key in wanted if key not in committed]
        prompts = build_prompts(plan, dict.fromkeys(key.score for key in pending), self._images)
        tasks = {
            key: Task(prompts[key.score], plan.answers(key.score[0]) if key.kind == "probabilities" else ()) for key in pending
        }
        return plan, committed, tasks

    def _load(self) -> None:
        self._store = self._open_scores()
        self._engine.load()
        self._reserved = self._engine.reserved_texts()
        self._generation = self._engine.generation_fingerprint()
        self._generation_digest = digest(self._generation)
        # Nobody waits longer than the deadline for a batch: past it, others may try.
        self._claims = BatchClaims(self._store, self._generation_digest, expiry_s=self._claim_expiry_s, limit_s=self._deadline_s)

    def _process(self, batch: Mapping[WorkKey, Task]) -> dict[WorkKey, Outcome]:
        """Outcomes of a batch, committed; without the keys that another scorer on the same database is making.

        Looked up once more first: a key may have been committed since its request did so.
        """
        assert self._claims is not None, "made before the worker is ready"
        try:
            outcomes = self._committed(batch)
            pending = [key for key in batch if key not in outcomes]
            if pending:
                with self._claims.held(pending) as won:
                    self._make({key: batch[key] for key in won})
                # Another scorer may have committed a key first: what the store holds is the score.
                outcomes = self._committed(batch)
        except OperationalError as exc:
            self.metrics.add(failed_batches=1)
            raise _database_away(exc) from exc
        except Exception:
            self.metrics.add(failed_batches=1)
            raise
        return outcomes

    def _make(self, tasks: Mapping[WorkKey, Task]) -> None:
        """Lets the engine answer, and commits."""
        if not tasks:
            return
        started = time.perf_counter()
        made = self._ask_engine(tasks)
        seconds = time.perf_counter() - started
        self._commit(made)
        weighed = sum(key.kind == "probabilities" for key in tasks)
        self.metrics.add(generated=len(tasks) - weighed, weighed=weighed, batches=1, engine_seconds=seconds)

    def _ask_engine(self, tasks: Mapping[WorkKey, Task]) -> dict[WorkKey, Outcome]:
        made: dict[WorkKey, Outcome] = {}
        texts = {key: task.prompt for key, task in tasks.items() if key.kind == "text"}
        if texts:
            made |= zip(texts, self._engine.generate(list(texts.values())), strict=True)
        weighed = {key: task for key, task in tasks.items() if key.kind == "probabilities"}
        if weighed:
            prompts, answers = [task.prompt for task in weighed.values()], [task.answers for task in weighed.values()]
            found = self._engine.answer_probabilities(prompts, answers)
            for key, own, values in zip(weighed, answers, found, strict=True):
                made[key] = dict(zip(own, values, strict=True))
        return made

    def _committed(self, keys: Iterable[WorkKey]) -> dict[WorkKey, Outcome]:
        found: dict[WorkKey, Outcome] = {}
        try:
            for (dataset, kind), wanted in grouped(keys).items():
                read = self.scores.committed if kind == "text" else self.scores.committed_probabilities
                for score, outcome in read(dataset, self._generation_digest, wanted).items():
                    found[WorkKey(dataset, score, kind)] = outcome
        except OperationalError as exc:
            raise _database_away(exc) from exc
        return found

    def _commit(self, outcomes: Mapping[WorkKey, Outcome]) -> None:
        for (dataset, kind), keys in grouped(outcomes).items():
            rows: dict[ScoreKey, Any] = {key: outcomes[WorkKey(dataset, key, kind)] for key in keys}
            write = self.scores.commit if kind == "text" else self.scores.commit_probabilities
            write(dataset, self._generation_digest, rows)


def _database_away(exc: OperationalError) -> Unavailable:
    return Unavailable(what="the score database", reason=str(exc.orig), hint="nothing was scored; try again")
