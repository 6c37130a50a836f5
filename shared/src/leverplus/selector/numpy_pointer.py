"""PointerSelectorV3 in numpy, its keys and values folded (exact but for rounding).

One query attends to its pool, so a head's scores are context @ (Wk' (Wq x + bq)) / sqrt(width) — the key bias cancels in the
softmax — and what it adds is Wo (Wv (weights @ context) + bv): no key and no value of any candidate is ever made, and the two
pairs of matrices are multiplied once, when the selector is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from leverplus.selector.config import SelectorConfig
from leverplus.selector.numpy_base import Mask, PolicyState, SelectorPolicy, for_product
from leverplus.vectors import Vector, layer_norm, measurable, sigmoid, softmax, unit


class _Layer(NamedTuple):
    """One round of attention of n heads: into [h, n·h] and into_bias [n·h] make each head's query, out [n·h, h] and out_bias [h]
    what is added for its sum over the pool; norm and norm_bias [h] are of the layer norm after it."""

    into: Vector
    into_bias: Vector
    out: Vector
    out_bias: Vector
    norm: Vector
    norm_bias: Vector


class V3Policy(SelectorPolicy):
    """The pointer architecture."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[np.float32]], config: SelectorConfig) -> None:
        super().__init__(tensors, config)
        self._layers = [self._folded(layer) for layer in range(config.num_layers)]

    @property
    def _sees_choices(self) -> bool:
        return self.config.state_update != "none"

    def _folded(self, number: int) -> _Layer:
        name = f"cross_attn_layers.{number}"
        hidden, heads = self.config.hidden_dim, self.config.num_heads
        width = hidden // heads
        # Rows of in_proj: queries, keys, values; inside each, head after head.
        weights = self._weights[f"{name}.in_proj_weight"].astype(np.float64).reshape(3, heads, width, hidden)
        bias = self._weights[f"{name}.in_proj_bias"].astype(np.float64).reshape(3, heads, width)
        out = self._weights[f"{name}.out_proj.weight"].astype(np.float64).reshape(hidden, heads, width)
        scale = 1 / np.sqrt(width)
        layer = (
            np.einsum("nwk,nwh->hnk", weights[1], weights[0]).reshape(hidden, heads * hidden) * scale,
            np.einsum("nwk,nw->nk", weights[1], bias[0]).reshape(heads * hidden) * scale,
            np.einsum("onw,nwk->nko", out, weights[2]).reshape(heads * hidden, hidden),
            np.einsum("onw,nw->o", out, bias[2]) + self._weights[f"{name}.out_proj.bias"],
            self._weights[f"attn_norms.{number}.weight"],
            self._weights[f"attn_norms.{number}.bias"],
        )
        return _Layer(*(np.ascontiguousarray(part, dtype=np.float32) for part in layer))

    def _begin(self, query: Vector, context: Vector, closed: Mask | None) -> PolicyState:
        if self.config.query_mlp:
            query = measurable("query", query + self._feed_forward("query_mlp", self._normed("query_norm", query)))
        for layer in self._layers:
            query = query + self._attend(layer, query, context, closed)
            query = layer_norm(measurable("query", query), layer.norm, layer.norm_bias)
        direction = unit(measurable("query", query @ self._weights["query_proj.weight"].T))
        return PolicyState(direction, np.empty((len(query), 0), dtype=np.float32))

    def _attend(self, layer: _Layer, query: Vector, context: Vector, closed: Mask | None) -> Vector:
        folded = query @ layer.into
        folded += layer.into_bias
        scores = for_product(folded, len(query), context) @ context.mT
        if closed is not None:
            of_query = scores.reshape(len(query), -1, scores.shape[-1])
            of_query[np.broadcast_to(closed[:, None], of_query.shape)] = -np.inf
        summed: Vector = softmax(scores) @ context
        added = summed.reshape(len(query), -1) @ layer.out
        added += layer.out_bias
        return added

    def _advance(self, state: PolicyState, chosen: Vector) -> PolicyState:
        keys = unit(chosen @ self._weights["cand_proj.weight"].T)
        if self.config.state_update == "residual":
            seen = np.concatenate([state.direction, keys, state.direction * keys], axis=1)
            return PolicyState(unit(state.direction + self._feed_forward("state_mlp", seen)), state.memory)
        raw = np.concatenate([state.direction, keys], axis=1) @ self._weights["query_update_gate.weight"].T
        gate = sigmoid(raw + self._weights["query_update_gate.bias"])
        return PolicyState(unit(keys + np.multiply(gate, state.direction - keys)), state.memory)

    def _feed_forward(self, name: str, vectors: Vector) -> Vector:
        inner: Vector = vectors @ self._weights[f"{name}.up.weight"].T
        inner += self._weights[f"{name}.up.bias"]
        inner *= sigmoid(inner)
        outer: Vector = inner @ self._weights[f"{name}.down.weight"].T
        outer += self._weights[f"{name}.down.bias"]
        return outer
