"""A trained selector without torch, for many queries at once: what leverplus.selector.base is for torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from leverplus.errors import InvalidCheckpoint, InvalidConfig, InvalidEmbeddings
from leverplus.ids import Position
from leverplus.selector.config import SelectorConfig, tensor_shapes
from leverplus.vectors import Vector, layer_norm, log_softmax, measurable, norm, top_in_order

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

_ROWS_A_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Choice:
    """Positions in prompt order, the log-probability of each given those before it, and their sum (0 if empty)."""

    positions: tuple[Position, ...]
    step_logprobs: tuple[float, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class PreparedCandidates:
    """Candidates as the selector sees them, for keeping: `context` [..., K, h], and the `lengths` [..., K] of their keys.

    [K, h] is one pool for all queries, [B, K, h] a pool for each. A key is cand_proj of the context, scaled to length 1; it is
    never kept, because a logit is the context's product with one vector, divided by the key's length.
    """

    context: Vector
    lengths: Vector

    def take(self, ids: Indices) -> PreparedCandidates:
        """Those of one pool [K], in its order, or of several [B, K]."""
        return PreparedCandidates(self.context.take(ids, axis=0), self.lengths.take(ids))

    def at(self, positions: Indices) -> Vector:
        """Contexts [B, W, h] of positions [B, W]."""
        if self.context.ndim == 2:
            return self.context[positions]
        return self.context[np.arange(len(positions))[:, None], positions]

    def __len__(self) -> int:
        return self.context.shape[-2]


class PolicyState(NamedTuple):
    """What R pointers have come to: direction [R, h] of unit length, and memory [R, …], see decoding.State."""

    direction: Vector
    memory: Vector

    def rows(self, parent: Indices) -> PolicyState:
        return PolicyState(self.direction[parent], self.memory[parent])


class SelectorPolicy(ABC):
    """A selector in eval mode. Holds float32 weights; safe to share between threads."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[np.float32]], config: SelectorConfig) -> None:
        """Raises InvalidCheckpoint unless the tensors are exactly those of the configuration."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        expected = tensor_shapes(config)
        if shapes != expected:
            wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
            raise InvalidCheckpoint(path="selector", reason=f"tensors do not fit its configuration: {', '.join(wrong)}")
        self.config = config
        self._weights = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}

    @property
    @abstractmethod
    def _sees_choices(self) -> bool:
        """Whether a step depends on what the steps before it chose."""

    @abstractmethod
    def _begin(self, query: Vector, context: Vector, closed: Mask | None) -> PolicyState:
        """State of an empty pointer for each of B queries. query [B, h] and context [K, h] or [B, K, h] are projected, K is at
        least 1, `closed` [B, K] are candidates that there are not."""

    @abstractmethod
    def _advance(self, state: PolicyState, chosen: Vector) -> PolicyState:
        """State after each of R pointers was given one more demonstration, whose context is chosen [R, h]."""

    def prepare(self, candidates: Vector) -> PreparedCandidates:
        """The part of the work that does not depend on the query. candidates [N, d]."""
        self._check_width("candidates", candidates, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            context = measurable("candidates", self._project(candidates))
        return PreparedCandidates(context, norm(context @ self._weights["cand_proj.weight"].T))

    def prepare_rows(self, vectors: Vector, rows: Indices) -> tuple[PreparedCandidates, Mask]:
        """`prepare` of rows [N] of vectors [M, d], and which of them [N] are finite: others are prepared as zeros.

        Block by block: the vectors may be mapped from a file that is larger than memory.
        """
        count = len(rows)
        context = np.empty((count, self.config.hidden_dim), dtype=np.float32)
        lengths, known = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.bool_)
        for start in range(0, count, _ROWS_A_BLOCK):
            block = slice(start, min(start + _ROWS_A_BLOCK, count))
            part = vectors[rows[block]]
            known[block] = np.isfinite(part).all(axis=1)
            part[~known[block]] = 0.0
            prepared = self.prepare(part)
            context[block], lengths[block] = prepared.context, prepared.lengths
        return PreparedCandidates(context, lengths), known

    def logits(self, query: Vector, candidates: Vector | PreparedCandidates) -> Vector:
        """Logits [K] of the first step. query [d], candidates [K, d]."""
        prepared = self._prepared(candidates)
        with np.errstate(over="ignore", invalid="ignore"):
            state = self._begin(measurable("query", self._project(query[None])), prepared.context, None)
            return self._scores(state.direction, prepared, 1, None)[0, 0]

    def choose(self, query: Vector, candidates: Vector | PreparedCandidates, shots: int, beam: int = 1) -> Choice:
        """The best pointer: greedy, or the first of `beam` beams. query [d], candidates [K, d] or prepared ones.

        Raises InvalidConfig for a width other than d_model and for more shots than candidates, InvalidEmbeddings for vectors
        whose length or logits are too large for float32: no position is ever chosen by a number that is none.
        """
        return self.choose_beams(query, candidates, shots, beam)[0]

    def choose_beams(self, query: Vector, candidates: Vector | PreparedCandidates, shots: int, beam: int) -> list[Choice]:
        """At most `beam` pointers, best first; fewer where the pool has fewer. Ties go to the lower position."""
        return self.choose_many(query[None], self._prepared(candidates), shots, beam)[0]

    def choose_many(
        self, queries: Vector, candidates: PreparedCandidates, shots: int, beam: int = 1, closed: Mask | None = None
    ) -> list[list[Choice]]:
        """`choose_beams` for each of queries [B, d], from one pool or one each; nothing `closed` [B, K] is ever chosen."""
        prepared = self._prepared(candidates)
        _check_search(prepared, shots, beam, closed)
        return self.choose_from(self.begin(queries, prepared.context, closed), prepared, shots, beam, closed)

    def begin(self, queries: Vector, attended: Vector, closed: Mask | None = None) -> PolicyState:
        """State of an empty pointer for each of queries [B, d] that attends to contexts `attended` [n, h] or [B, n, h], which
        are those of its pool or stand for them, but not to those that are `closed` [B, n]."""
        self._check_width("query", queries, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._begin(measurable("query", self._project(queries)), attended, closed)

    def choose_from(
        self, state: PolicyState, candidates: PreparedCandidates, shots: int, beam: int = 1, closed: Mask | None = None
    ) -> list[list[Choice]]:
        """`choose_many` for queries that `begin` has been done for."""
        _check_search(candidates, shots, beam, closed)
        with np.errstate(over="ignore", invalid="ignore"):
            first = self._scores(state.direction, candidates, 1, closed)
            if beam == 1 and not self._sees_choices:
                return _best_in_order(first[:, 0], shots)
            return self._search(state, first, candidates, shots, beam, closed)

    def keys(self, candidates: PreparedCandidates) -> Vector:
        """[..., K, h] of unit length: a logit is the product of a state's direction and a key, over the temperature."""
        return (candidates.context @ self._weights["cand_proj.weight"].T) / candidates.lengths[..., None]

    def _search(
        self, state: PolicyState, first: Vector, prepared: PreparedCandidates, shots: int, beam: int, closed: Mask | None
    ) -> list[list[Choice]]:
        """Beam search from the logits [B, 1, K] of the first step."""
        batch, _, pool = first.shape
        row = np.arange(batch)[:, None]
        positions = np.empty((batch, 1, 0), dtype=np.int64)
        steps = np.empty((batch, 1, 0), dtype=np.float32)
        logits = first
        for step in range(shots):
            width = positions.shape[1]
            if step:
                if self._sees_choices:
                    logits = self._scores(state.direction, prepared, width, closed)
                else:
                    logits = np.repeat(first, width, axis=1)
                np.put_along_axis(logits, positions, -np.inf, axis=2)
            logprobs = log_softmax(logits)
            totals = (steps.sum(axis=2, dtype=np.float32)[:, :, None] + logprobs).reshape(batch, -1)
            index = top_in_order(totals, min(beam, width * pool))
            parent, position = np.divmod(index, pool)
            positions = np.concatenate([positions[row, parent], position[..., None]], axis=2)
            steps = np.concatenate([steps[row, parent], logprobs.reshape(batch, -1)[row, index][..., None]], axis=2)
            if self._sees_choices and step + 1 < shots:
                state = self._advance(state.rows((row * width + parent).ravel()), _rows(prepared.at(position)))
        return [_choices(*found) for found in zip(positions.tolist(), steps, strict=True)]

    def _prepared(self, candidates: Vector | PreparedCandidates) -> PreparedCandidates:
        prepared = candidates if isinstance(candidates, PreparedCandidates) else self.prepare(candidates)
        if not len(prepared):
            raise InvalidConfig(field="candidates", reason="the pool is empty")
        return prepared

    def _check_width(self, name: str, array: Vector, dimensions: int) -> None:
        if array.ndim != dimensions or array.shape[-1] != self.config.d_model:
            raise InvalidConfig(
                field=name, reason=f"shape {array.shape}, but the selector was made for vectors of {self.config.d_model}"
            )

    def _project(self, vectors: Vector) -> Vector:
        vectors = np.asarray(vectors, dtype=np.float32)
        weight = self._weights.get("input_proj.weight")
        return vectors if weight is None else vectors @ weight.T

    def _scores(self, directions: Vector, prepared: PreparedCandidates, width: int, closed: Mask | None) -> Vector:
        """Logits [B, width, K] of directions [B · width, h]; -inf where nothing can be chosen."""
        # direction · (cand_proj context) is (cand_projᵀ direction) · context.
        folded = for_product(directions @ self._weights["cand_proj.weight"], len(directions) // width, prepared.context)
        logits = folded @ prepared.context.mT
        logits /= (prepared.lengths * np.float32(self.config.temperature))[..., None, :]
        logits = logits.reshape(-1, width, len(prepared))
        if not np.isfinite(logits).all():
            raise InvalidEmbeddings(path="logits", reason="not finite; the query, the candidates or the temperature are extreme")
        if closed is not None:
            logits[np.broadcast_to(closed[:, None], logits.shape)] = -np.inf
        return logits

    def _normed(self, name: str, vectors: Vector) -> Vector:
        return layer_norm(vectors, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])


def for_product(vectors: Vector, batch: int, context: Vector) -> Vector:
    """vectors of `batch` queries in a shape that multiplies context [K, h] in one product, or each of context [B, K, h]."""
    width = context.shape[-1]
    return vectors.reshape(-1, width) if context.ndim == 2 else vectors.reshape(batch, -1, width)


def _check_search(candidates: PreparedCandidates, shots: int, beam: int, closed: Mask | None) -> None:
    smallest = len(candidates) if closed is None else len(candidates) - int(closed.sum(axis=1).max())
    if not 0 <= shots <= smallest:
        raise InvalidConfig(field="shots", reason=f"{shots}, the pool has {smallest} candidates")
    if beam < 1:
        raise InvalidConfig(field="beam", reason=f"{beam}, must be at least 1")


def _rows(values: Vector) -> Vector:
    return values.reshape(-1, values.shape[-1])


def _best_in_order(logits: Vector, shots: int) -> list[list[Choice]]:
    """Greedy search from logits [B, K] that no choice changes: the best, and each one's log-probability among what is left."""
    batch, pool = logits.shape
    best = top_in_order(logits, shots)
    flat = best + np.arange(0, batch * pool, pool)[:, None]
    # float64, and sums of what is left instead of differences: next to a near-certain choice the rest would be lost.
    weights = np.subtract(logits, logits.take(flat[:, :1]) if shots else 0, dtype=np.float64)
    np.exp(weights, out=weights)
    chosen = weights.take(flat)
    weights.put(flat, 0.0)
    left = np.add.reduce(weights, axis=1, keepdims=True) + np.add.accumulate(chosen[:, ::-1], axis=1)[:, ::-1]
    steps = np.log(chosen / left)
    return [_choices([positions], one[None]) for positions, one in zip(best.tolist(), steps, strict=True)]


def _choices(positions: list[list[int]], steps: npt.NDArray[np.floating]) -> list[Choice]:
    """Beams [W, S] of one query; those that ran out of candidates are left out."""
    totals = steps.sum(axis=1)
    return [
        Choice(tuple(map(Position, places)), tuple(step), total)
        for places, step, total in zip(positions, steps.tolist(), totals.tolist(), strict=True)
        if total > -np.inf
    ]
