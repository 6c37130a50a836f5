"""Attention of Qwen2.5-VL's vision tower with many windows in one call; transformers makes a call for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

_BOUNDS_PER_PASS = 2
"""A pass has the windows' boundaries, and the images' for the layers that see them whole."""


def batch_windows(visual: Any) -> None:
    """Gives every block of a loaded vision tower an attention with the same weights and fewer calls, in place."""
    groups = WindowGroups()
    for block in visual.blocks:
        if not isinstance(block.attn, WindowAttention):
            block.attn = WindowAttention(block.attn, groups)


class WindowGroups:
    """Which rows make up the windows of each length; worked out once for the layers of a pass, which share their bounds."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, list[Tensor]]] = []

    def of(self, bounds: Tensor) -> list[Tensor]:
        """bounds [W + 1], cumulated lengths of windows that lie one behind the other → rows [count, length] of each length."""
        for known, groups in self._known:
            if known is bounds:
                return groups
        starts, lengths = bounds[:-1].cpu(), bounds.diff().cpu()
        groups = [
            (starts[lengths == length][:, None] + torch.arange(int(length))).to(bounds.device)
            for length in lengths.unique()
            if length > 0
        ]
        self._known = [*self._known[1 - _BOUNDS_PER_PASS :], (bounds, groups)]
        return groups


class WindowAttention(nn.Module):
    """Windows of one length go through one call without a mask or padding."""

    def __init__(self, stock: Any, groups: WindowGroups) -> None:
        super().__init__()
        self.qkv, self.proj = stock.qkv, stock.proj
        self._heads = int(stock.num_heads)
        self._groups = groups

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """hidden_states [rows, d] → [rows, d]; cu_seqlens are the windows' bounds."""
        rows = len(hidden_states)
        query, key, value = self.qkv(hidden_states).view(rows, 3, self._heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        mixed = torch.empty_like(query)
        for places in self._groups.of(cu_seqlens):
            q, k, v = (part[places].transpose(1, 2) for part in (query, key, value))
            mixed[places] = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(mixed.flatten(1))
