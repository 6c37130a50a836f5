"""Scoring: look up what is committed, let the engine answer the rest, commit it, apply the metric."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError

from leverplus.errors import DeadlineExceeded, LeverPlusError, QueueFull, Unavailable
from leverplus.fingerprint import digest
from leverplus.scoring import ScorePlanResponse, ScoreRequest, ScoreResponse
from leverplus.store import ScoreKey, ScoreStore
from leverplus.tracing import span
from vqa_scorer.answering import make_fingerprint, make_response
from vqa_scorer.batching import BatchWorker, Ticket
from vqa_scorer.claims import BatchClaims
from vqa_scorer.engines import Counting, Engine, LooksAhead
from vqa_scorer.metrics import ScorerMetrics
from vqa_scorer.planning import OpenDatasets, ReadableImages, ScorePlan, build_prompts, plan_request
from vqa_scorer.streaming import Prepared, ScoreStream
from vqa_scorer.work import Outcome, Task, WorkKey, grouped, order

logger = logging.getLogger(__name__)

_COUNTED_AT_A_TIME = 10_000


class ScoringService:
    """One engine, one store, many concurrent requests.

    `batch_size` prompts, or as many as the engine says, go to the engine at a time. `queue_size` pointers may wait, and a request
    is answered within `deadline_s`. Other scorers on the database take what this one has begun over `claim_expiry_s` after it
    was killed. `load_failed` is called with the reason when the engine could not be loaded.
    """

    def __init__(
        self,
        engine: Engine,
        datasets: OpenDatasets,
        open_scores: Callable[[], ScoreStore],
        *,
        batch_size: int | None,
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
        self._claim_expiry_s = claim_expiry_s
        self._batch_size = batch_size
        self.deadline_s = deadline_s
        self._images = ReadableImages()
        self._generation: dict[str, Any] = {}
        self._generation_digest = ""
        self._reserved: frozenset[str] = frozenset()
        self.worker: BatchWorker[WorkKey, Task, Outcome] = BatchWorker(
            self._process,
            load=self._load,
            batch_size=batch_size or 1,
            capacity=queue_size,
            order=order,
            look_ahead=self._look_ahead,
            load_failed=load_failed,
        )
        self.metrics = ScorerMetrics(
            lambda: (self.worker.waiting, self.worker.in_progress, self.worker.capacity),
            lambda: engine.counts() if isinstance(engine, Counting) else None,
        )

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
            with self._unanswered():
                async with asyncio.timeout(self.deadline_s):
                    self.worker.require_ready()
                    plan = await asyncio.to_thread(self._plan, request)
                    prepared = await asyncio.to_thread(self._prepare, plan)
                    ticket = self.worker.submit(prepared.tasks, places_a_pointer=plan.places_a_pointer)
                    outcomes = {**prepared.committed, **await ticket.values()}
        finally:
            if ticket is not None:
                self.worker.abandon(ticket)
        return await asyncio.to_thread(self._answer, prepared, outcomes)

    async def open_stream(self, request: ScoreRequest) -> ScoreStream:
        """The answer as a stream whose first slice is placed; the caller closes it.

        Raises as `score` does, for the whole request, but for images that cannot be read, which its slices find.
        """
        with self._unanswered():
            async with asyncio.timeout(self.deadline_s):
                self.worker.require_ready()
                stream = ScoreStream(
                    await asyncio.to_thread(self._plan, request),
                    prepare=self._prepare,
                    worker=self.worker,
                    metrics=self.metrics,
                    generation=self._generation,
                    batch_size=self.worker.batch_size,
                    deadline_s=self.deadline_s,
                )
                await stream.start()
                return stream

    async def plan(self, request: ScoreRequest) -> ScorePlanResponse:
        """What the request would take; raises what `plan_request` raises, and Unavailable."""
        self.worker.require_ready()
        return await asyncio.to_thread(self._estimate, request)

    @contextmanager
    def _unanswered(self) -> Generator[None]:
        """Counts what ends a request without scores."""
        try:
            yield
        except TimeoutError:
            self.metrics.add(deadline_exceeded=1)
            raise DeadlineExceeded(what="scoring the request", limit_s=self.deadline_s) from None
        except asyncio.CancelledError:
            self.metrics.add(client_gone=1)
            raise
        except QueueFull:
            self.metrics.add(refused=1)
            raise

    def _plan(self, request: ScoreRequest) -> ScorePlan:
        with self.metrics.phase("prepare"):
            return plan_request(request, self._datasets, self._reserved, has_probabilities=self._engine.has_probabilities)

    def _prepare(self, plan: ScorePlan) -> Prepared:
        with self.metrics.phase("prepare"):
            wanted = _wanted(plan)
            committed = self._committed(wanted)
            pending = [key for key in wanted if key not in committed]
            prompts = build_prompts(plan, dict.fromkeys(key.score for key in pending), self._images)
            tasks = {
                key: Task(prompts[key.score], plan.answers(key.score[0]) if key.kind == "probabilities" else ())
                for key in pending
            }
            return Prepared(plan, committed, tasks)

    def _answer(self, prepared: Prepared, outcomes: Mapping[WorkKey, Outcome]) -> ScoreResponse:
        with self.metrics.phase("answer"):
            response = make_response(prepared.plan, outcomes, prepared.committed.keys(), self._generation)
        self.metrics.answered(response.stats)
        return response

    def _estimate(self, request: ScoreRequest) -> ScorePlanResponse:
        """Committed scores are counted a part at a time: their texts need not fit in memory."""
        plan = self._plan(request)
        pending: dict[WorkKey, None] = {}
        for part in plan.slices(_COUNTED_AT_A_TIME):
            wanted = _wanted(part.plan)
            committed = self._committed(wanted)
            pending.update(dict.fromkeys(key for key in wanted if key not in committed))
        items = (item for query_id, pointers in plan.queries for pointer in pointers for item in (query_id, *pointer))
        to_score = (item for key in pending for item in (key.score[0], *key.score[1]))
        rate = self.metrics.pointers_per_engine_s
        return ScorePlanResponse(
            fingerprint=make_fingerprint(plan, self._generation),
            queries=len(plan.queries),
            pointers=sum(len(pointers) for _, pointers in plan.queries),
            committed=len(dict.fromkeys(_wanted(plan))) - len(pending),
            to_score=len(pending),
            images=plan.count_images(items),
            images_to_score=plan.count_images(to_score),
            pointers_per_engine_s=rate,
            estimated_s=len(pending) / rate if rate else None,
        )

    def _load(self) -> None:
        self._store = self._open_scores()
        self._engine.load()
        self.worker.batch_size = self._batch_size or self._engine.batch_size
        self._reserved = self._engine.reserved_texts()
        self._generation = self._engine.generation_fingerprint()
        self._generation_digest = digest(self._generation)
        # Nobody waits longer than the deadline for a batch: past it, others may try.
        self._claims = BatchClaims(self._store, self._generation_digest, expiry_s=self._claim_expiry_s, limit_s=self.deadline_s)

    def _look_ahead(self, tasks: list[Task]) -> None:
        if isinstance(self._engine, LooksAhead):
            self._engine.look_ahead([task.prompt for task in tasks])

    def _process(self, batch: Mapping[WorkKey, Task]) -> dict[WorkKey, Outcome | LeverPlusError]:
        """What is committed of a batch, and why some of it failed; without the keys that another scorer on the store is making.

        Looked up once more first: a key may have been committed since its request did so.
        """
        assert self._claims is not None, "made before the worker is ready"
        try:
            outcomes: dict[WorkKey, Outcome | LeverPlusError] = {**self._committed(batch)}
            pending = [key for key in batch if key not in outcomes]
            if pending:
                with self._claims.held(pending) as won:
                    failed = self._make({key: batch[key] for key in won})
                if failed:
                    self._claims.release(failed)
                # Another scorer may have committed a key first: what the store holds is the score.
                outcomes = {**failed, **self._committed(batch)}
        except DBAPIError as exc:
            self.metrics.add(failed_batches=1)
            raise self._database_away(exc) from exc
        except Exception:
            self.metrics.add(failed_batches=1)
            raise
        return outcomes

    def _make(self, tasks: Mapping[WorkKey, Task]) -> dict[WorkKey, LeverPlusError]:
        """Lets the engine answer, and commits. The errors of what could not be answered."""
        if not tasks:
            return {}
        with span("score batch", batch__size=len(tasks)) as traced:
            tokens = self._tokens()
            started = time.perf_counter()
            made, failed = self._ask_engine(tasks)
            seconds = time.perf_counter() - started
            traced.set(batch__failed=len(failed), batch__tokens=None if tokens is None else (self._tokens() or 0) - tokens)
        with self.metrics.phase("commit"):
            self._commit(made)
        weighed = sum(key.kind == "probabilities" for key in made)
        self.metrics.add(generated=len(made) - weighed, weighed=weighed, batches=1, engine_seconds=seconds)
        if failed:
            self.metrics.add(failed_batches=1)
            logger.warning("%d of a batch of %d failed: %s", len(failed), len(tasks), next(iter(failed.values())))
        return failed

    def _tokens(self) -> int | None:
        """That the engine has read so far; None where it does not count."""
        return self._engine.counts().tokens if isinstance(self._engine, Counting) else None

    def _ask_engine(self, tasks: Mapping[WorkKey, Task]) -> tuple[dict[WorkKey, Outcome], dict[WorkKey, LeverPlusError]]:
        """What was made, and the errors of what was not."""
        made: dict[WorkKey, Outcome] = {}
        failed: dict[WorkKey, LeverPlusError] = {}
        texts = {key: task.prompt for key, task in tasks.items() if key.kind == "text"}
        if texts:
            for key, text in zip(texts, self._engine.generate(list(texts.values())), strict=True):
                if isinstance(text, LeverPlusError):
                    failed[key] = text
                else:
                    made[key] = text
        weighed = {key: task for key, task in tasks.items() if key.kind == "probabilities"}
        if weighed:
            prompts, answers = [task.prompt for task in weighed.values()], [task.answers for task in weighed.values()]
            found = self._engine.answer_probabilities(prompts, answers)
            for key, own, values in zip(weighed, answers, found, strict=True):
                made[key] = dict(zip(own, values, strict=True))
        self.metrics.batch(len(tasks))
        return made, failed

    def _committed(self, keys: Iterable[WorkKey]) -> dict[WorkKey, Outcome]:
        found: dict[WorkKey, Outcome] = {}
        try:
            for (dataset, kind), wanted in grouped(keys).items():
                read = self.scores.committed if kind == "text" else self.scores.committed_probabilities
                for score, outcome in read(dataset, self._generation_digest, wanted).items():
                    found[WorkKey(dataset, score, kind)] = outcome
        except DBAPIError as exc:
            raise self._database_away(exc) from exc
        return found

    def _database_away(self, exc: DBAPIError) -> Unavailable:
        hint = "check its server or file, its disk, and who else uses it; nothing was lost, try again"
        return Unavailable(what=f"the score database {self.scores.name}", reason=str(exc.orig), hint=hint)

    def ready(self) -> None:
        """Unavailable while scores cannot be made or kept."""
        self.worker.require_ready()
        self.scores.require_file()

    def _commit(self, outcomes: Mapping[WorkKey, Outcome]) -> None:
        for (dataset, kind), keys in grouped(outcomes).items():
            rows: dict[ScoreKey, Any] = {key: outcomes[WorkKey(dataset, key, kind)] for key in keys}
            write = self.scores.commit if kind == "text" else self.scores.commit_probabilities
            write(dataset, self._generation_digest, rows)


def _wanted(plan: ScorePlan) -> list[WorkKey]:
    """All that the plan's candidates are made of."""
    dataset = plan.opened.digest
    texts = [WorkKey(dataset, key) for key in plan.text_keys()]
    return texts + [WorkKey(dataset, key, "probabilities") for key in plan.weighed_keys()]
