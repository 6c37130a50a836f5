"""From a query and a way of choosing to the answer's dictionary."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from leverplus.errors import FingerprintMismatch, InvalidConfig, InvalidEmbeddings, InvalidInput, LeverPlusError
from leverplus.ids import MAX_SHOTS
from leverplus.selection import ChosenItem, PolicyName, Selection
from selector_api.fixed_pointer import fixed_pointer
from selector_api.schemas import Choosing, QueryReference
from selector_api.serving import LoadedPrefilter, Pool, Query, Served


@dataclass(frozen=True, slots=True)
class Way:
    """How to choose; `shots` is settled."""

    policy: PolicyName
    shots: int
    beam: int
    exclude: tuple[int, ...] = ()
    prefilter: LoadedPrefilter | None = None


def settle_way(served: Served, asked: Choosing, prefilter: LoadedPrefilter | None = None) -> Way:
    """Checks what was asked against the checkpoint.

    InvalidConfig naming the field; FingerprintMismatch for another dataset; NotFound for an item that it has not.
    """
    info, policy, shots, beam, dataset = served.info, asked.policy, asked.shots, asked.beam, asked.dataset
    if dataset is not None and dataset != info.dataset:
        raise FingerprintMismatch(
            subject=f"checkpoint {info.checkpoint_id}", differences={"dataset.name": (dataset, info.dataset)}
        )
    if policy == "zero_shot":
        if shots:
            raise InvalidConfig(field="shots", reason=f"{shots}, but policy zero_shot has none")
        shots = 0
    trained = max(info.shots, default=MAX_SHOTS)
    if shots is None:
        shots = trained
    if policy == "v3" and shots > trained:
        reason = f"{shots}, but checkpoint {info.checkpoint_id} was trained for at most {trained}; ask for at most that many"
        raise InvalidConfig(field="shots", reason=reason)
    if policy != "v3" and beam != 1:
        raise InvalidConfig(field="beam", reason=f"{beam}, but policy {policy} knows no beam; leave it out")
    if policy != "v3" and asked.prefilter is not None:
        reason = f"{asked.prefilter!r}, but policy {policy} needs none; leave it out"
        raise InvalidConfig(field="prefilter", reason=reason)
    for item_id in asked.exclude:
        served.dataset.item(item_id)
    return Way(policy, shots, beam, asked.exclude, prefilter)


def resolve_query(
    served: Served,
    query_id: int | None,
    question_id: str | None,
    embedding: Sequence[float] | None = None,
    unseen: Query | None = None,
) -> Query:
    """InvalidInput unless exactly one of the four is given; NotFound; InvalidEmbeddings for a vector of another kind."""
    offered = {"query_id": query_id, "question_id": question_id, "embedding": embedding, "image and question": unseen}
    given = [name for name, value in offered.items() if value is not None]
    if len(given) != 1:
        raise InvalidInput(f"a query needs one of {', '.join(offered)}; given: {', '.join(given) or 'none'}")
    if unseen is not None:
        return unseen
    if query_id is not None:
        return Query(served.dataset.item(query_id).item_id)
    if question_id is not None:
        return Query(served.dataset.id_of_question(question_id))
    with np.errstate(over="ignore"):
        vector = np.asarray(embedding, dtype=np.float32)
    expected = served.embeddings.manifest.d_model
    if len(vector) != expected:
        reason = f"{len(vector)} numbers, but the embeddings of dataset {served.info.dataset!r} have {expected}"
        raise InvalidEmbeddings(path="embedding", reason=reason)
    if not np.isfinite(vector).all():
        raise InvalidEmbeddings(path="embedding", reason=f"number {int(np.argmin(np.isfinite(vector)))} is not finite in float32")
    with np.errstate(over="ignore"):
        length = np.sqrt(np.vdot(vector, vector))
    if not np.isfinite(length):
        reason = "its length is not finite in float32; send it as the encoder makes it, of about unit length"
        raise InvalidEmbeddings(path="embedding", reason=reason)
    if length == 0:
        reason = "its length is 0 in float32, so that nothing is nearer to it than another; send what the encoder makes"
        raise InvalidEmbeddings(path="embedding", reason=reason)
    return Query(None, vector)


def select_each(
    served: Served, asked: Sequence[QueryReference], unseen: Mapping[int, Query], way: Way
) -> list[tuple[Query, Selection]]:
    """Each query with its answer, all or none; an error names its query. `unseen`: those that are encoded, by their number."""
    queries: list[Query] = []
    for number, one in enumerate(asked):
        with naming(number):
            queries.append(resolve_query(served, one.query_id, one.question_id, one.embedding, unseen.get(number)))
    selections: list[tuple[Query, Selection]] = []
    for number, answer in enumerate(select(served, queries, way)):
        if isinstance(answer, LeverPlusError):
            with naming(number):
                raise answer
        selections.append((queries[number], answer))
    return selections


@contextmanager
def naming(number: int) -> Generator[None]:
    """Errors inside say which of the request's queries they are about."""
    try:
        yield
    except LeverPlusError as exc:
        exc.detail = f"queries.{number}: {exc.detail}"
        raise


def select(served: Served, queries: Sequence[Query], way: Way) -> list[Selection | LeverPlusError]:
    """The answer to each query, or why there is none."""
    answers: dict[int, Selection | LeverPlusError] = {}
    waiting: list[tuple[int, Query, Pool]] = []
    for number, query in enumerate(queries):
        try:
            if way.policy == "best_fixed":
                pool, pointer = fixed_pointer(served, query, way.shots, way.exclude)
                answers[number] = _answer(served, query, way, pool, pointer)
                continue
            if way.prefilter is not None:
                pool, found = served.choose_among_nearest(way.prefilter, query, way.shots, way.beam, way.exclude)
                answers[number] = _answer(served, query, way, pool, *found)
                continue
            pool = _pool(served, query, way)
            if way.policy == "v3":
                waiting.append((number, query, pool))
            else:
                positions = served.compare(query, pool, way.policy, way.shots)
                answers[number] = _answer(served, query, way, pool, pool.ids[list(positions)].tolist())
        except LeverPlusError as exc:
            answers[number] = exc
    if waiting:
        chosen = served.choose([(query, pool) for _, query, pool in waiting], way.shots, way.beam)
        for (number, query, pool), found in zip(waiting, chosen, strict=True):
            answers[number] = found if isinstance(found, LeverPlusError) else _answer(served, query, way, pool, *found)
    return [answers[number] for number in range(len(queries))]


def _pool(served: Served, query: Query, way: Way) -> Pool:
    pool = served.pool(query)
    if way.exclude:
        pool = pool.without(np.isin(pool.ids, way.exclude))
    if way.shots > len(pool.ids):
        left_out = len(pool.description["excluded"])
        after = f" after {left_out} were left out" if left_out else ""
        raise InvalidConfig(field="shots", reason=f"{way.shots}, but the pool has {len(pool.ids)} candidates{after}")
    return pool


def _answer(
    served: Served, query: Query, way: Way, pool: Pool, pointer: list[int], steps: Sequence[float] | None = None
) -> Selection:
    return {
        "query_id": query.item_id,
        "pointer": pointer,
        "icds": [_chosen(served, item_id, step) for item_id, step in zip(pointer, steps or [None] * len(pointer), strict=True)],
        "logprob": None if steps is None else float(sum(steps)),
        "policy": way.policy,
        "checkpoint": served.info.checkpoint_id,
        "pool": pool.description,
        "prefilter": None if way.prefilter is None else way.prefilter.description,
        "fingerprint": served.digests,
    }


def _chosen(served: Served, item_id: int, step: float | None) -> ChosenItem:
    item = served.dataset.items[item_id]
    return {
        "item_id": item_id,
        "question": item.question,
        "answer": item.answer,
        "image_url": None if item.image is None else f"/items/{served.info.dataset}/{item_id}/image",
        "step_logprob": step,
    }
