"""PointerSelectorV3 in numpy, its keys and values folded (exact but for rounding).

One query attends to its pool, so a head's scores are context @ (Wk' (Wq x + bq)) / sqrt(width) — the key bias cancels in the
softmax — and its output is Wv (weights @ context) + bv: no key and no value of any candidate is ever made.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from leverplus.selector.numpy_base import PolicyState, PreparedCandidates, SelectorPolicy
from leverplus.vectors import Vector, log_softmax, measurable, sigmoid, unit


class V3Policy(SelectorPolicy):
    """The pointer architecture."""

    def _begin(self, query: Vector, context: Vector) -> PolicyState:
        for layer in range(self.config.num_layers):
            attended = measurable("query", query + self._attend(f"cross_attn_layers.{layer}", query, context))
            query = self._normed(f"attn_norms.{layer}", attended)
        direction = unit(measurable("query", self._weights["query_proj.weight"] @ query))
        return PolicyState(direction[None], np.empty((1, 0), dtype=np.float32))

    def _attend(self, name: str, query: Vector, context: Vector) -> Vector:
        hidden, heads = self.config.hidden_dim, self.config.num_heads
        width = hidden // heads
        # Rows of in_proj: queries, keys, values; inside each, head after head.
        into = self._weights[f"{name}.in_proj_weight"].reshape(3, heads, width, hidden)
        bias = self._weights[f"{name}.in_proj_bias"].reshape(3, heads, width)
        queries = into[0] @ query + bias[0]
        folded = np.einsum("nwh,nw->nh", into[1], queries) / np.float32(np.sqrt(width))
        weights = np.exp(log_softmax(folded @ context.T))
        pooled = weights @ context
        values = np.einsum("nwh,nh->nw", into[2], pooled) + bias[2]
        return self._weights[f"{name}.out_proj.weight"] @ values.reshape(hidden) + self._weights[f"{name}.out_proj.bias"]

    def _advance(self, state: PolicyState, prepared: PreparedCandidates, positions: npt.NDArray[np.int64]) -> PolicyState:
        if self.config.state_update == "none":
            return state
        chosen = prepared.keys[positions]
        raw = np.concatenate([state.direction, chosen], axis=1) @ self._weights["query_update_gate.weight"].T
        gate = sigmoid(raw + self._weights["query_update_gate.bias"])
        return PolicyState(unit(chosen + np.multiply(gate, state.direction - chosen)), state.memory)
