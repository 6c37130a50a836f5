"""AutoregressiveSelector in numpy. What the decoder makes of its beginning is the same for every query and made once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from leverplus.errors import InvalidConfig
from leverplus.selector.config import POSITIONS, SelectorConfig
from leverplus.selector.numpy_base import Mask, PolicyState, SelectorPolicy
from leverplus.vectors import Vector, gelu, log_softmax, measurable, unit


class AutoregressivePolicy(SelectorPolicy):
    """The autoregressive architecture."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[np.float32]], config: SelectorConfig) -> None:
        super().__init__(tensors, config)
        nothing = np.empty((1, 0, config.num_layers, 2, config.hidden_dim), dtype=np.float32)
        self._begun = self._next(nothing, self._weights["beginning"][None]).memory

    @property
    def _sees_choices(self) -> bool:
        return True

    def _begin(self, query: Vector, context: Vector, closed: Mask | None) -> PolicyState:
        return self._next(np.repeat(self._begun, len(query), axis=0), query)

    def _advance(self, state: PolicyState, chosen: Vector) -> PolicyState:
        return self._next(state.memory, chosen)

    def _next(self, memory: Vector, tokens: Vector) -> PolicyState:
        """State after one more token [R, h]; memory [R, T, L, 2, h]: keys and values of T tokens in L layers."""
        place = memory.shape[1]
        if place == POSITIONS:
            raise InvalidConfig(field="shots", reason=f"an autoregressive selector has places for at most {POSITIONS - 1}")
        tokens = tokens + self._weights["position_embeddings.weight"][place]
        read = np.empty((len(tokens), 1, *memory.shape[2:]), dtype=np.float32)
        for layer in range(self.config.num_layers):
            name = f"decoder_layers.{layer}"
            asked, read[:, 0, layer, 0], read[:, 0, layer, 1] = np.split(
                self._linear(f"{name}.self_attn.in_proj_", self._normed(f"{name}.norm1", tokens)), 3, axis=1
            )
            known = np.concatenate([memory[:, :, layer], read[:, :, layer]], axis=1)
            tokens = tokens + self._linear(f"{name}.self_attn.out_proj.", self._attend(asked, known))
            inner = gelu(self._linear(f"{name}.linear1.", self._normed(f"{name}.norm2", tokens)))
            tokens = tokens + self._linear(f"{name}.linear2.", inner)
        state = measurable("query", self._normed("final_norm", tokens) @ self._weights["query_proj.weight"].T)
        return PolicyState(unit(state), np.concatenate([memory, read], axis=1))

    def _attend(self, asked: Vector, known: Vector) -> Vector:
        """asked [R, h], known [R, T, 2, h] keys and values → [R, h]."""
        heads, width = self.config.num_heads, self.config.hidden_dim // self.config.num_heads
        known = known.reshape(*known.shape[:3], heads, width)
        scores = np.einsum("whd,wthd->wht", asked.reshape(len(asked), heads, width), known[:, :, 0])
        weights = np.exp(log_softmax(scores / np.float32(np.sqrt(width))))
        return np.einsum("wht,wthd->whd", weights, known[:, :, 1]).reshape(asked.shape)

    def _linear(self, name: str, vectors: Vector) -> Vector:
        return vectors @ self._weights[f"{name}weight"].T + self._weights[f"{name}bias"]
