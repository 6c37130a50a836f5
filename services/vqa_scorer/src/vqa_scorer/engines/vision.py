"""Qwen2.5-VL's vision tower with the same weights and less work: transformers' own makes a call of attention for each window."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, rms_norm

from vqa_scorer.engines.attention import Spans, attend
from vqa_scorer.engines.elementwise import Elementwise

_BOUNDS_PER_PASS = 2
"""A pass has the windows' boundaries, and the images' for the layers that see them whole."""
_ALIGNMENT = 64
"""Rows of 3,420 values, as the published models have them, lie across a GPU's 16-byte boundaries: 200 TFLOP/s instead of 700."""


def hastened(visual: Any, elementwise: Elementwise) -> Any:
    """A vision tower over the same weights as a loaded one, which stays as it is, with the parts below in place of its own."""
    bounds = KnownBounds()
    tower = _twin(visual)
    tower.patch_embed = PatchEmbedding(visual.patch_embed)
    tower.blocks = nn.ModuleList()
    for stock in visual.blocks:
        block = _twin(stock)
        block.norm1, block.norm2 = Norm(stock.norm1), Norm(stock.norm2)
        block.attn = PackedAttention(stock.attn, bounds, elementwise)
        block.mlp = AlignedMLP(stock.mlp, elementwise)
        tower.blocks.append(block)
    return tower


def _twin(module: Any) -> Any:
    """The same module with children of its own to replace."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


class KnownBounds:
    """Windows' boundaries as spans; worked out once for the layers of a pass, which share them."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, Spans]] = []

    def spans(self, bounds: Tensor) -> Spans:
        """bounds [W + 1], cumulated lengths of windows that lie one behind the other; some may be empty."""
        for known, spans in self._known:
            if known is bounds:
                return spans
        lengths = [length for length in bounds.diff().tolist() if length > 0]
        spans = Spans(lengths, lengths, bounds.device, causal=False)
        self._known = [*self._known[1 - _BOUNDS_PER_PASS :], (bounds, spans)]
        return spans


class PackedAttention(nn.Module):
    def __init__(self, stock: Any, bounds: KnownBounds, elementwise: Elementwise) -> None:
        super().__init__()
        self.qkv, self.proj = stock.qkv, stock.proj
        self._heads = int(stock.num_heads)
        self._bounds = bounds
        self._elementwise = elementwise

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """hidden_states [rows, d] → [rows, d]; cu_seqlens are the windows' bounds."""
        parts = self.qkv(hidden_states).unflatten(1, (3 * self._heads, -1))
        turned = self._elementwise.rotated(parts[:, : 2 * self._heads], *position_embeddings)
        query, key = turned.chunk(2, dim=1)
        mixed = attend(query, key, parts[:, 2 * self._heads :], self._bounds.spans(cu_seqlens))
        return self.proj(mixed.flatten(1))


class AlignedMLP(nn.Module):
    """Gate and up in one product; the width between is filled up with zeros, which change no value."""

    def __init__(self, stock: Any, elementwise: Elementwise) -> None:
        super().__init__()
        missing = -stock.gate_proj.out_features % _ALIGNMENT
        both = (stock.gate_proj, stock.up_proj)
        self._gate_and_up = torch.cat([pad(layer.weight, (0, 0, 0, missing)) for layer in both])
        self._bias = torch.cat([pad(layer.bias, (0, missing)) for layer in both])
        self._down, self._down_bias = pad(stock.down_proj.weight, (0, missing)), stock.down_proj.bias
        self._elementwise = elementwise

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self._elementwise.gated(linear(hidden_states, self._gate_and_up, self._bias)), self._down, self._down_bias)


class Norm(nn.Module):
    """RMS norm in torch's one kernel."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight = stock.weight
        self._epsilon = float(stock.variance_epsilon)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight.shape, self.weight, self._epsilon)


class PatchEmbedding(nn.Module):
    """The convolution whose stride is its kernel, as the matrix product that it is."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.proj = stock.proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[patches, 3 · frames · height · width] → [patches, d]"""
        return linear(hidden_states.to(self.proj.weight.dtype), self.proj.weight.flatten(1))
