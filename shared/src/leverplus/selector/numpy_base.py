"""A trained selector without torch, for one query at a time: what leverplus.selector.base is for torch."""

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
from leverplus.vectors import Vector, layer_norm, log_softmax, measurable, top_in_order, unit


@dataclass(frozen=True, slots=True)
class Choice:
    """Positions in prompt order, the log-probability of each given those before it, and their sum (0 if empty)."""

    positions: tuple[Position, ...]
    step_logprobs: tuple[float, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class PreparedCandidates:
    """Candidates as the selector sees them, for keeping: `context` [N, h] projected, `keys` [N, h] of unit length."""

    context: Vector
    keys: Vector

    def take(self, ids: npt.NDArray[np.int64]) -> PreparedCandidates:
        """Those of one pool, in its order."""
        return PreparedCandidates(self.context[ids], self.keys[ids])

    def __len__(self) -> int:
        return len(self.keys)


class PolicyState(NamedTuple):
    """What W pointers have come to: direction [W, h] of unit length, and memory [W, …], see decoding.State."""

    direction: Vector
    memory: Vector

    def rows(self, parent: npt.NDArray[np.int64]) -> PolicyState:
        return PolicyState(self.direction[parent], self.memory[parent])


class SelectorPolicy(ABC):
    """A selector in eval mode for one query at a time. Holds float32 weights; safe to share between threads."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[np.float32]], config: SelectorConfig) -> None:
        """Raises InvalidCheckpoint unless the tensors are exactly those of the configuration."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        expected = tensor_shapes(config)
        if shapes != expected:
            wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
            raise InvalidCheckpoint(path="selector", reason=f"tensors do not fit its configuration: {', '.join(wrong)}")
        self.config = config
        self._weights = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}

    @abstractmethod
    def _begin(self, query: Vector, context: Vector) -> PolicyState:
        """State of one empty pointer. query [h] and context [K, h] are projected; K is at least 1."""

    @abstractmethod
    def _advance(self, state: PolicyState, prepared: PreparedCandidates, positions: npt.NDArray[np.int64]) -> PolicyState:
        """State after each of W pointers was given one more of its positions [W]."""

    def prepare(self, candidates: Vector) -> PreparedCandidates:
        """The part of the work that does not depend on the query. candidates [N, d]."""
        self._check_width("candidates", candidates, 2)
        context = measurable("candidates", self._project(candidates))
        return PreparedCandidates(context, unit(context @ self._weights["cand_proj.weight"].T))

    def logits(self, query: Vector, candidates: Vector | PreparedCandidates) -> Vector:
        """Logits [K] of the first step. query [d], candidates [K, d]."""
        prepared = self._prepared(candidates)
        return self._scores(self._encode(query, prepared).direction, prepared.keys)[0]

    def choose(self, query: Vector, candidates: Vector | PreparedCandidates, shots: int, beam: int = 1) -> Choice:
        """The best pointer: greedy, or the first of `beam` beams. query [d], candidates [K, d] or prepared ones.

        Raises InvalidConfig for a width other than d_model and for more shots than candidates, InvalidEmbeddings for vectors
        whose length or logits are too large for float32: no position is ever chosen by a number that is none.
        """
        return self.choose_beams(query, candidates, shots, beam)[0]

    def choose_beams(self, query: Vector, candidates: Vector | PreparedCandidates, shots: int, beam: int) -> list[Choice]:
        """At most `beam` pointers, best first; fewer where the pool has fewer. Ties go to the lower position."""
        prepared = self._prepared(candidates)
        if not 0 <= shots <= len(prepared):
            raise InvalidConfig(field="shots", reason=f"{shots}, the pool has {len(prepared)} candidates")
        if beam < 1:
            raise InvalidConfig(field="beam", reason=f"{beam}, must be at least 1")
        state = self._encode(query, prepared)
        positions = np.empty((1, 0), dtype=np.int64)
        steps = np.empty((1, 0), dtype=np.float32)
        for step in range(shots):
            if step:
                state = self._advance(state, prepared, positions[:, -1])
            logits = self._scores(state.direction, prepared.keys)
            np.put_along_axis(logits, positions, -np.inf, axis=1)
            logprobs = log_softmax(logits)
            totals = steps.sum(axis=1, keepdims=True, dtype=np.float32) + logprobs
            index = top_in_order(totals.reshape(-1), beam)
            parent, position = np.divmod(index, len(prepared))
            positions = np.concatenate([positions[parent], position[:, None]], axis=1)
            steps = np.concatenate([steps[parent], logprobs[parent, position][:, None]], axis=1)
            state = state.rows(parent)
        return [
            Choice(tuple(Position(int(place)) for place in row), tuple(map(float, step)), float(step.sum()))
            for row, step in zip(positions, steps, strict=True)
        ]

    def _encode(self, query: Vector, prepared: PreparedCandidates) -> PolicyState:
        self._check_width("query", query, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._begin(measurable("query", self._project(query)), prepared.context)

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
        with np.errstate(over="ignore", invalid="ignore"):
            return vectors if weight is None else vectors @ weight.T

    def _scores(self, directions: Vector, keys: Vector) -> Vector:
        """Logits [W, K] of directions [W, h]."""
        with np.errstate(over="ignore", invalid="ignore"):
            logits = directions @ keys.T / np.float32(self.config.temperature)
        if not np.isfinite(logits).all():
            raise InvalidEmbeddings(path="logits", reason="not finite; the query, the candidates or the temperature are extreme")
        return logits

    def _normed(self, name: str, vectors: Vector) -> Vector:
        return layer_norm(vectors, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])
