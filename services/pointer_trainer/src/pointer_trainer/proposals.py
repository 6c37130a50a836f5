"""Candidate pointers of a selector and of the model-free sources, for a stream of queries."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidConfig
from leverplus.ids import ItemId
from leverplus.policies import similar_positions
from leverplus.pools import Pools
from leverplus.random_order import derive_seed
from leverplus.rl_data import Candidate
from leverplus.selector import Selector, SelectorConfig, new_selector
from pointer_trainer.candidates import (
    Positions,
    answer_pointers,
    answer_words,
    in_order,
    logging_weights,
    mixture_propensity,
    mixture_weights,
    part_at,
    random_pointers,
    retrieval_windows,
    to_items,
    uniform_logprob,
)
from pointer_trainer.requests import GenerateRequest
from pointer_trainer.tempered import tempered_logprobs

_NUMBERS_AT_ONCE = 16_000_000
"""Largest number of candidate embeddings' values in one batch of the selector."""


@dataclass(frozen=True)
class Proposal:
    query_id: ItemId
    pool: tuple[ItemId, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class _Draw:
    """A drawn pointer: which part of a mixture made it, at which temperature; `is_logged` where its propensity is stated."""

    positions: Positions
    gen_method: str
    temperature: float | None
    is_logged: bool


@dataclass(frozen=True)
class _Batch:
    """query [B, d], candidates [B, K, d] and pool_mask [B, K] of queries whose pools are padded to one size."""

    query_ids: Sequence[ItemId]
    pools: Sequence[NDArray[np.int64]]
    query: Tensor
    candidates: Tensor
    pool_mask: Tensor


def initialised_selector(d_model: int, seed: int) -> tuple[Selector, dict[str, Any]]:
    """A selector before any training, the same for the same seed, and what `_meta` says of it."""
    config = SelectorConfig(d_model=d_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        selector = new_selector(config).eval()
    return selector, {"source": "initialised", "seed": seed, "config": config.to_json()}


def logging_mixture(request: GenerateRequest) -> dict[str, float]:
    """Weights of the mixture that propensities are of: "random" and "sample@T"; empty where nothing is drawn."""
    if request.logging is None:
        return mixture_weights(request.temps, request.num_samples_per_temp, request.num_random)
    return logging_weights(request.logging.epsilon or 1.0, request.logging.temperatures)


def propose(
    selector: Selector,
    embeddings: Embeddings,
    pools: Pools,
    query_ids: Sequence[ItemId],
    request: GenerateRequest,
) -> Generator[Proposal]:
    """The candidates of each query, in the queries' order. The same request and selector give the same candidates.

    Raises InvalidConfig for a pool with fewer items than shots.
    """
    for batch in _batches(embeddings, pools, query_ids):
        rows: list[list[Candidate]] = [[] for _ in batch.query_ids]
        for shots in request.shots:
            found = _found(selector, embeddings, batch, shots, request)
            for row, more in zip(rows, found, strict=True):
                row.extend(more)
            for row, more in zip(rows, _by_answer(embeddings, pools.dataset, batch, shots, request.num_answer), strict=True):
                row.extend(more)
        for query_id, pool, row in zip(batch.query_ids, batch.pools, rows, strict=True):
            if request.zero_shot:
                row.append(Candidate((), "zero_shot"))
            yield Proposal(query_id, to_items(pool, range(len(pool))), in_order(row))


def _batches(embeddings: Embeddings, pools: Pools, query_ids: Sequence[ItemId]) -> Generator[_Batch]:
    start = 0
    while start < len(query_ids):
        first = pools.pool(query_ids[start])
        size = max(1, min(32, _NUMBERS_AT_ONCE // (len(first) * embeddings.manifest.d_model)))
        chunk = query_ids[start : start + size]
        yield _batch(embeddings, chunk, [first, *(pools.pool(query_id) for query_id in chunk[1:])])
        start += size


def _batch(embeddings: Embeddings, query_ids: Sequence[ItemId], pools: Sequence[NDArray[np.int64]]) -> _Batch:
    largest = max(len(pool) for pool in pools)
    candidates = np.zeros((len(pools), largest, embeddings.manifest.d_model), dtype=np.float32)
    pool_mask = np.zeros((len(pools), largest), dtype=np.bool_)
    for row, pool in enumerate(pools):
        candidates[row, : len(pool)] = embeddings.candidate[embeddings.require(pool)]
        pool_mask[row, : len(pool)] = True
    query = embeddings.query[embeddings.require(query_ids)]
    return _Batch(query_ids, pools, torch.from_numpy(query), torch.from_numpy(candidates), torch.from_numpy(pool_mask))


def _found(
    selector: Selector, embeddings: Embeddings, batch: _Batch, shots: int, request: GenerateRequest
) -> list[list[Candidate]]:
    """Candidates of one length for each query of the batch, repeats included."""
    smallest = min(len(pool) for pool in batch.pools)
    if shots > smallest:
        raise InvalidConfig(field="shots", reason=f"{shots}, but a pool has {smallest} items; enlarge pool.k or ask for fewer")
    found = _beams(selector, batch, shots, request.num_beams)
    drawn = _draws(selector, batch, shots, request)
    for row, logged in zip(drawn, _logging_draws(selector, batch, shots, request), strict=True):
        row.extend(logged)
    temps = request.temps if request.logging is None else request.logging.temperatures
    logprobs = _tempered_logprobs(selector, batch, drawn, (1.0, *temps))
    weights = logging_mixture(request)
    for row, pool in enumerate(batch.pools):
        vectors = embeddings.candidate[pool]
        ranks = min(len(pool), shots + request.num_retrieval - 1) if request.num_retrieval else 0
        similar = similar_positions(embeddings.query[batch.query_ids[row]], vectors, embeddings.manifest.blocks, "joint", ranks)
        for window in retrieval_windows(similar[::-1], shots, request.num_retrieval):
            found[row].append(Candidate(to_items(pool, window), "retrieval"))
        propensities: dict[Positions, float] = {}
        for index, draw in enumerate(drawn[row]):
            parts = {f"sample@{t:g}": logprobs[row, index, 1 + place] for place, t in enumerate(temps)}
            parts["random"] = uniform_logprob(len(pool), shots)
            # A pointer drawn twice has one probability, to the last bit.
            propensity = propensities.setdefault(draw.positions, mixture_propensity(weights, parts))
            found[row].append(
                Candidate(
                    to_items(pool, draw.positions),
                    draw.gen_method,
                    logprob_score=float(logprobs[row, index, 0]) if draw.gen_method == "sample" else None,
                    temperature=draw.temperature,
                    propensity=propensity if draw.is_logged and propensity > 0 else None,
                )
            )
    return found


def _by_answer(embeddings: Embeddings, dataset: Dataset, batch: _Batch, shots: int, count: int) -> list[list[Candidate]]:
    if not count:
        return [[] for _ in batch.pools]
    found: list[list[Candidate]] = []
    for query_id, pool in zip(batch.query_ids, batch.pools, strict=True):
        query, vectors = embeddings.query[query_id], embeddings.candidate[pool]
        ranking = similar_positions(query, vectors, embeddings.manifest.blocks, "joint", len(pool))[::-1]
        offered = [answer_words(dataset.item(int(item_id)).answer) for item_id in pool]
        pointers = answer_pointers(answer_words(dataset.item(query_id).answer), offered, ranking, shots, count)
        found.append([Candidate(to_items(pool, pointer), "answer") for pointer in pointers])
    return found


def _beams(selector: Selector, batch: _Batch, shots: int, num_beams: int) -> list[list[Candidate]]:
    if not num_beams:
        return [[] for _ in batch.pools]
    beams = selector.select_beams(batch.query, batch.candidates, shots, num_beams, batch.pool_mask)
    positions, scores = beams.positions.tolist(), beams.logprob.tolist()
    return [
        [
            Candidate(to_items(pool, pointer), "beam", beam_rank=rank, beam_score=score, logprob_score=score)
            for rank, (pointer, score) in enumerate(zip(positions[row], scores[row], strict=True))
            if -1 not in pointer
        ]
        for row, pool in enumerate(batch.pools)
    ]


def _draws(selector: Selector, batch: _Batch, shots: int, request: GenerateRequest) -> list[list[_Draw]]:
    """The same number of draws for every query: the samples of each temperature, then the random ones."""
    draws: list[list[_Draw]] = [[] for _ in batch.pools]
    is_logged = request.logging is None
    for temperature in request.temps if request.num_samples_per_temp else ():
        samples = _sample(selector, batch, shots, request.num_samples_per_temp, temperature, request.seed, "samples")
        for row, pointers in zip(draws, samples, strict=True):
            row.extend(_Draw(pointer, "sample", temperature, is_logged) for pointer in pointers)
    for row, query_id, pool in zip(draws, batch.query_ids, batch.pools, strict=True):
        drawn = random_pointers(len(pool), shots, request.num_random, seed=request.seed, query_id=query_id)
        row.extend(_Draw(pointer, "random", None, is_logged) for pointer in drawn)
    return draws


def _logging_draws(selector: Selector, batch: _Batch, shots: int, request: GenerateRequest) -> list[list[_Draw]]:
    """`request.logging.draws` independent draws of its mixture for every query; none where it is null."""
    if request.logging is None:
        return [[] for _ in batch.pools]
    weights, count = logging_mixture(request), request.logging.draws
    temperatures = {f"sample@{temperature:g}": temperature for temperature in request.logging.temperatures}
    # As many of each part as there are draws: which of them is taken must not depend on what it is.
    samples = {
        name: _sample(selector, batch, shots, count, temperature, request.seed, "logging")
        for name, temperature in temperatures.items()
        if name in weights
    }
    draws: list[list[_Draw]] = []
    for row, (query_id, pool) in enumerate(zip(batch.query_ids, batch.pools, strict=True)):
        uniform = random_pointers(len(pool), shots, count, seed=request.seed, query_id=query_id, purpose="logging")
        taken: list[_Draw] = []
        for draw in range(count):
            level = derive_seed("logging part", request.seed, shots, int(query_id), draw) / 2**64
            part = part_at(weights, level)
            if part == "random":
                taken.append(_Draw(uniform[draw], "random", None, is_logged=True))
            else:
                taken.append(_Draw(samples[part][row][draw], "sample", temperatures[part], is_logged=True))
        draws.append(taken)
    return draws


def _sample(
    selector: Selector, batch: _Batch, shots: int, count: int, temperature: float, seed: int, purpose: str
) -> list[list[Positions]]:
    """`count` independent pointers of each query at one temperature, others for another purpose."""
    own_seed = derive_seed(purpose, seed, shots, f"{temperature:g}", int(batch.query_ids[0]))
    samples = selector.sample(
        batch.query,
        batch.candidates,
        shots,
        count=count,
        temperature=temperature,
        generator=torch.Generator().manual_seed(own_seed % 2**63),
        pool_mask=batch.pool_mask,
    )
    return [[tuple(pointer) for pointer in row] for row in samples.positions.tolist()]


@torch.no_grad()
def _tempered_logprobs(
    selector: Selector, batch: _Batch, drawn: Sequence[Sequence[_Draw]], temps: Sequence[float]
) -> NDArray[np.float64]:
    """[B, D, T] log-probability of each drawn pointer under softmax(logits / temperature), for each temperature."""
    if not drawn[0]:
        return np.empty((len(drawn), 0, len(temps)))
    pointers = torch.tensor([[draw.positions for draw in row] for row in drawn])
    encoded = selector.encode(batch.query, batch.candidates, batch.pool_mask)
    return tempered_logprobs(selector, encoded, pointers, temps).numpy()
