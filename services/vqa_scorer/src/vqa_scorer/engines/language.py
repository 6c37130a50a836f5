"""Qwen2.5-VL's language model over packed rows: transformers' weights, without padding and without what no one reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import linear, rms_norm

from vqa_scorer.engines.attention import Spans, attend
from vqa_scorer.engines.elementwise import Elementwise, fused

Gather = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""layer, the rows' own keys and values [T, key heads, width] → all that are attended to [K, key heads, width]"""
Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""layer, queries [R, heads, width], the rows' own keys and values [R, key heads, width] → values mixed [R, heads, width]"""


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    output: Tensor
    before_mlp: Tensor
    gate_and_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    key_heads: int
    width: int
    intermediate: int


@dataclass(frozen=True)
class Asked:
    """The rows [A] whose last hidden states are wanted, each the last of its sequence, and their spans: one query a sequence."""

    rows: Tensor
    spans: Spans


class Language:
    """The layers of a loaded `Qwen2_5_VLTextModel` in eval mode, which keeps working: it shares its weights."""

    def __init__(self, model: Any, elementwise: Elementwise) -> None:
        config = model.config
        width = int(model.layers[0].self_attn.head_dim)
        heads, key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.shape = Shape(len(model.layers), int(config.hidden_size), heads, key_heads, width, int(config.intermediate_size))
        self._model = model
        self._elementwise = elementwise
        self._epsilon = float(config.rms_norm_eps)
        self._layers = [_layer(layer) for layer in model.layers]

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._model.embed_tokens(token_ids)

    def read(self, hidden: Tensor, positions: Tensor, spans: Spans, gather: Gather, asked: Asked | None) -> Tensor | None:
        """Packed rows hidden [T, h], which are overwritten, at positions [3, T] → hidden states [A, h] of the asked rows.

        `gather` is called once a layer; what it returns is packed as `spans` says. In the last layer only the asked rows have
        queries.
        """
        last = self.shape.layers - 1

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = gather(layer, key, value)
            if layer < last:
                return attend(query, keys, values, spans)
            return query if asked is None else attend(query, keys, values, asked.spans)

        return self._run(hidden, positions, mix, asked.rows if asked is not None else None, whole=False)

    def step(self, hidden: Tensor, positions: Tensor, mix: Mix) -> Tensor:
        """One more token a row: hidden [R, h], which are overwritten, at positions [3, R] → hidden states [R, h]."""
        found = self._run(hidden, positions, mix, None, whole=True)
        assert found is not None, "all rows are asked for"
        return found

    def _run(self, hidden: Tensor, positions: Tensor, mix: Mix, asked: Tensor | None, *, whole: bool) -> Tensor | None:
        shape, make = self.shape, self._elementwise
        cos, sin = (part[0] for part in self._model.rotary_emb(hidden[None], positions[:, None]))
        turning = shape.heads + shape.key_heads
        for number, layer in enumerate(self._layers):
            normed = rms_norm(hidden, (shape.hidden,), layer.before_attention, self._epsilon)
            parts = linear(normed, layer.qkv, layer.qkv_bias).unflatten(1, (-1, shape.width))
            turned = make.rotated(parts[:, :turning], cos, sin)
            query, key, value = turned[:, : shape.heads], turned[:, shape.heads :], parts[:, turning:]
            last = number == shape.layers - 1 and not whole
            if last and asked is not None:
                query, hidden = query[asked], hidden[asked]
            mixed = mix(number, query, key, value)
            if last and asked is None:
                return None
            hidden.addmm_(mixed.flatten(1), layer.output.T)
            normed = rms_norm(hidden, (shape.hidden,), layer.before_mlp, self._epsilon)
            hidden.addmm_(make.gated(linear(normed, layer.gate_and_up)), layer.down.T)
        return rms_norm(hidden, (shape.hidden,), self._model.norm.weight, self._epsilon)


def _layer(stock: Any) -> _Layer:
    attention, mlp = stock.self_attn, stock.mlp
    qkv, qkv_bias = fused(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_and_up, _ = fused(mlp.gate_proj, mlp.up_proj)
    return _Layer(
        stock.input_layernorm.weight,
        qkv,
        qkv_bias,
        attention.o_proj.weight,
        stock.post_attention_layernorm.weight,
        gate_and_up,
        mlp.down_proj.weight,
    )
