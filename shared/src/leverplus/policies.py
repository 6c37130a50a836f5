"""Choosing demonstrations without torch: the trained selector in numpy, and the policies it is compared with.

The selector is the one of leverplus.selector in eval mode with its keys and values folded (exact but for rounding). One
query attends to its pool, so a head's scores are context @ (Wk' (Wq x + bq)) / sqrt(width) — the key bias cancels in the
softmax — and its output is Wv (weights @ context) + bv: no key and no value of any candidate is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from leverplus.embeddings import Block, require_block
from leverplus.errors import InvalidCheckpoint, InvalidConfig, InvalidEmbeddings, InvalidPointer
from leverplus.ids import Position
from leverplus.random_order import derive_seed, random_first
from leverplus.selector.config import TIE_TOLERANCE, SelectorConfig, tensor_shapes

Vector = npt.NDArray[np.float32]

POLICY_NAMES = ("v3", "random", "similar_image", "similar_text", "similar_joint", "best_fixed", "zero_shot")

_LAYER_NORM_EPSILON = 1e-5
_UNIT_EPSILON = 1e-12


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


class V3Policy:
    """The selector for one query at a time. Holds float32 weights; safe to share between threads."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[np.float32]], config: SelectorConfig) -> None:
        """Raises InvalidCheckpoint unless the tensors are exactly those of the configuration."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        expected = tensor_shapes(config)
        if shapes != expected:
            wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
            raise InvalidCheckpoint(path="selector", reason=f"tensors do not fit its configuration: {', '.join(wrong)}")
        self.config = config
        self._weights = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}

    def prepare(self, candidates: Vector) -> PreparedCandidates:
        """The part of the work that does not depend on the query. candidates [N, d]."""
        self._check_width("candidates", candidates, 2)
        context = _measurable("candidates", self._project(candidates))
        return PreparedCandidates(context, _unit(context @ self._weights["cand_proj.weight"].T))

    def logits(self, query: Vector, candidates: Vector | PreparedCandidates) -> Vector:
        """Logits [K] of the first step. query [d], candidates [K, d]."""
        prepared = self._prepared(candidates)
        return self._scores(self._state(query, prepared.context), prepared.keys)

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
        states = self._state(query, prepared.context)[None]
        positions = np.empty((1, 0), dtype=np.int64)
        steps = np.empty((1, 0), dtype=np.float32)
        for _ in range(shots):
            logits = self._scores(states, prepared.keys)
            np.put_along_axis(logits, positions, -np.inf, axis=1)
            logprobs = _log_softmax(logits)
            totals = steps.sum(axis=1, keepdims=True, dtype=np.float32) + logprobs
            index = _top_in_order(totals.reshape(-1), beam)
            parent, position = np.divmod(index, len(prepared))
            positions = np.concatenate([positions[parent], position[:, None]], axis=1)
            steps = np.concatenate([steps[parent], logprobs[parent, position][:, None]], axis=1)
            states = self._advance(states[parent], prepared.keys[position])
        return [
            Choice(tuple(Position(int(place)) for place in row), tuple(map(float, step)), float(step.sum()))
            for row, step in zip(positions, steps, strict=True)
        ]

    def _prepared(self, candidates: Vector | PreparedCandidates) -> PreparedCandidates:
        return candidates if isinstance(candidates, PreparedCandidates) else self.prepare(candidates)

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

    def _scores(self, states: Vector, keys: Vector) -> Vector:
        """Logits [..., K] of states [..., h]."""
        with np.errstate(over="ignore", invalid="ignore"):
            logits = states @ keys.T / np.float32(self.config.temperature)
        if not np.isfinite(logits).all():
            raise InvalidEmbeddings(path="logits", reason="not finite; the query, the candidates or the temperature are extreme")
        return logits

    def _state(self, query: Vector, context: Vector) -> Vector:
        """State [h] of unit length before the first step."""
        self._check_width("query", query, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            state = _measurable("query", self._project(query))
            for layer in range(self.config.num_layers):
                attended = _measurable("query", state + self._attend(layer, state, context))
                state = self._layer_norm(layer, attended)
            return _unit(_measurable("query", self._weights["query_proj.weight"] @ state))

    def _attend(self, layer: int, state: Vector, context: Vector) -> Vector:
        if not len(context):
            raise InvalidConfig(field="candidates", reason="the pool is empty")
        name, hidden, heads = f"cross_attn_layers.{layer}", self.config.hidden_dim, self.config.num_heads
        width = hidden // heads
        # Rows of in_proj: queries, keys, values; inside each, head after head.
        into = self._weights[f"{name}.in_proj_weight"].reshape(3, heads, width, hidden)
        bias = self._weights[f"{name}.in_proj_bias"].reshape(3, heads, width)
        queries = into[0] @ state + bias[0]
        folded = np.einsum("nwh,nw->nh", into[1], queries) / np.float32(np.sqrt(width))
        weights = np.exp(_log_softmax(folded @ context.T))
        pooled = weights @ context
        values = np.einsum("nwh,nh->nw", into[2], pooled) + bias[2]
        return self._weights[f"{name}.out_proj.weight"] @ values.reshape(hidden) + self._weights[f"{name}.out_proj.bias"]

    def _layer_norm(self, layer: int, vector: Vector) -> Vector:
        centred = vector - vector.mean()
        scaled = centred / np.sqrt(np.mean(centred * centred) + np.float32(_LAYER_NORM_EPSILON))
        return scaled * self._weights[f"attn_norms.{layer}.weight"] + self._weights[f"attn_norms.{layer}.bias"]

    def _advance(self, states: Vector, chosen: Vector) -> Vector:
        if self.config.state_update == "none":
            return states
        raw = np.concatenate([states, chosen], axis=1) @ self._weights["query_update_gate.weight"].T
        gate = _sigmoid(raw + self._weights["query_update_gate.bias"])
        return _unit(chosen + np.multiply(gate, states - chosen))


def zero_shot() -> tuple[Position, ...]:
    """No demonstration."""
    return ()


def random_positions(pool_size: int, shots: int, *, seed: int, query: int | str) -> tuple[Position, ...]:
    """Distinct positions drawn for this query: the same in every process, different for every query and seed."""
    _check_shots(shots, pool_size)
    drawn = random_first(np.arange(pool_size, dtype=np.int64), shots, derive_seed("random_positions", seed, query))
    return tuple(Position(int(position)) for position in drawn)


def similar_positions(
    query: Vector, candidates: Vector, blocks: Sequence[Block], kind: Literal["image", "text", "joint"], shots: int
) -> tuple[Position, ...]:
    """The nearest by cosine of the image block, the question block or the whole vector, the most similar last.

    query [d], candidates [K, d]. On a tie the lower position counts as the more similar.
    """
    _check_shots(shots, len(candidates))
    columns = slice(None) if kind == "joint" else require_block(blocks, {"image": "image", "text": "question"}[kind])
    similarity = _unit(_measurable("candidates", candidates[:, columns])) @ _unit(_measurable("query", query[columns]))
    nearest = _top_in_order(similarity, shots)
    return tuple(Position(int(position)) for position in nearest[::-1])


def fixed_positions(pointer: Sequence[int], pool: npt.NDArray[np.int64]) -> tuple[Position, ...]:
    """Positions of a given pointer (`best_fixed`: the same for every query) in a pool; InvalidPointer if it lacks one."""
    place = {int(item_id): position for position, item_id in enumerate(pool)}
    missing = [item_id for item_id in pointer if int(item_id) not in place]
    if missing:
        raise InvalidPointer(f"pointer {list(pointer)}: items {missing} are not in the pool of {len(pool)}")
    return tuple(Position(place[int(item_id)]) for item_id in pointer)


def _check_shots(shots: int, pool_size: int) -> None:
    if not 0 <= shots <= pool_size:
        raise InvalidConfig(field="shots", reason=f"{shots}, the pool has {pool_size} candidates")


def _top_in_order(scores: Vector, count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` best of scores [N], best first, the lower index among equals; none that is -inf."""
    remaining = scores.copy()
    best: list[int] = []
    for _ in range(min(count, len(scores))):
        highest = remaining.max()
        if highest == -np.inf:
            break
        best.append(int(np.argmax(remaining >= highest - np.float32(TIE_TOLERANCE))))
        remaining[best[-1]] = -np.inf
    return np.asarray(best, dtype=np.int64)


def _measurable(name: str, vectors: Vector) -> Vector:
    """`vectors`, or InvalidEmbeddings where the sum of their squares is not finite: their direction would be lost."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.vdot(vectors, vectors)
    if not np.isfinite(size):
        reason = "its numbers are too large for float32, or not finite; scale it to about unit length"
        raise InvalidEmbeddings(path=name, reason=reason)
    return vectors


def _unit(vectors: Vector) -> Vector:
    length = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))
    return vectors / np.maximum(length, np.float32(_UNIT_EPSILON))


def _log_softmax(logits: Vector) -> Vector:
    """Over the last axis; -inf stays -inf, and a row of nothing but -inf is -inf."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - np.where(np.isfinite(highest), highest, np.float32(0))
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(np.maximum(total, np.finfo(np.float32).tiny))


def _sigmoid(values: Vector) -> Vector:
    """1 / (1 + exp(-x)) without overflow."""
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * values) + np.float32(1))
