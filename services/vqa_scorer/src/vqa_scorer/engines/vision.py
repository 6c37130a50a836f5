"""Qwen2.5-VL's vision tower over packed images: transformers' weights, one call of attention a layer instead of one a window, and
nothing that makes this thread wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import linear, pad, rms_norm

from vqa_scorer.engines.attention import Spans, attend, upload
from vqa_scorer.engines.elementwise import Elementwise
from vqa_scorer.engines.prefixes import ImageShape

_ALIGNMENT = 64
"""Rows of 3,420 values, as the published models have them, lie across a GPU's 16-byte boundaries: 200 TFLOP/s instead of 700."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Block:
    before_attention: Tensor
    qkv: Any
    output: Any
    before_mlp: Tensor
    gate_and_up: Tensor
    gate_and_up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    sees_whole_image: bool


@dataclass(frozen=True)
class _Arrangement:
    """An image's merged tokens in the order of windows: `order` of their places in the picture, rows and columns of their patches
    [patches] in that order, and the windows' lengths in patches."""

    order: Numbers
    rows: Numbers
    columns: Numbers
    windows: tuple[int, ...]


class VisionTower:
    """A loaded `Qwen2_5_VisionTransformerPretrainedModel` in eval mode, which keeps working: its weights are shared, but for the
    padded ones of its MLPs."""

    def __init__(self, model: Any, elementwise: Elementwise) -> None:
        self._model = model
        self._elementwise = elementwise
        self._merge = int(model.spatial_merge_size)
        self._window = int(model.window_size) // self._merge // int(model.patch_size)
        self._heads = int(model.blocks[0].attn.num_heads)
        self._epsilon = float(model.blocks[0].norm1.variance_epsilon)
        whole = set(model.fullatt_block_indexes)
        self._blocks = [_block(block, number in whole) for number, block in enumerate(model.blocks)]

    def features(self, patches: Tensor, shapes: Sequence[ImageShape]) -> list[Tensor]:
        """patches [Σ patches, 3 · frames · height · width] of images in order → features [tokens, hidden] of each."""
        device, weight = patches.device, self._model.patch_embed.proj.weight
        arranged = [_arranged(shape.rows, shape.columns, self._merge, self._window) for shape in shapes]
        tokens = np.array([shape.tokens for shape in shapes])
        starts = np.concatenate([[0], tokens.cumsum()[:-1]])
        order = np.concatenate([start + one.order for start, one in zip(starts, arranged, strict=True)])
        cos, sin = self._turns(arranged, device)
        lengths = (tokens * self._merge**2).tolist()
        images = Spans(lengths, lengths, device, causal=False)
        lengths = [length for one in arranged for length in one.windows]
        windows = Spans(lengths, lengths, device, causal=False)
        # The convolution's stride is its kernel: it is a matrix product.
        embedded = linear(patches.to(weight.dtype), weight.flatten(1)).unflatten(0, (-1, self._merge**2))
        hidden = embedded[upload(order, device)].flatten(0, 1)
        for block in self._blocks:
            spans = images if block.sees_whole_image else windows
            hidden = self._through(block, hidden, cos, sin, spans)
        merger = self._model.merger
        normed = rms_norm(hidden, (hidden.shape[1],), merger.ln_q.weight, self._epsilon)
        merged = merger.mlp(normed.unflatten(0, (-1, self._merge**2)).flatten(1))
        in_place = merged[upload(np.argsort(order), device)]
        # A part that is kept must not keep the whole pass.
        return [part.clone() for part in in_place.split(tokens.tolist())]

    def _through(self, block: _Block, hidden: Tensor, cos: Tensor, sin: Tensor, spans: Spans) -> Tensor:
        """Patches [T, d] through one block; they are overwritten."""
        width = (hidden.shape[1],)
        parts = block.qkv(rms_norm(hidden, width, block.before_attention, self._epsilon)).unflatten(1, (3 * self._heads, -1))
        turned = self._elementwise.rotated(parts[:, : 2 * self._heads], cos, sin)
        query, key = turned.chunk(2, dim=1)
        mixed = attend(query, key, parts[:, 2 * self._heads :], spans)
        hidden += block.output(mixed.flatten(1))
        normed = rms_norm(hidden, width, block.before_mlp, self._epsilon)
        gated = self._elementwise.gated(linear(normed, block.gate_and_up, block.gate_and_up_bias))
        hidden += linear(gated, block.down, block.down_bias)
        return hidden

    def _turns(self, arranged: Sequence[_Arrangement], device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin [T, width], float32: a quarter of a head turns by the patch's row, one by its column, and so again."""
        places = np.stack([np.concatenate([one.rows for one in arranged]), np.concatenate([one.columns for one in arranged])])
        speeds = self._model.rotary_pos_emb.inv_freq.to(device, torch.float32)
        angles = torch.cat([place[:, None] * speeds for place in upload(places, device).float()], dim=1)
        both = torch.cat([angles, angles], dim=1)
        return both.cos(), both.sin()


@lru_cache(maxsize=1024)
def _arranged(rows: int, columns: int, merge: int, window: int) -> _Arrangement:
    """rows and columns in merged tokens, each of merge × merge patches; windows are window × window merged tokens."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    windows_across = -(-columns // window)
    number = row // window * windows_across + column // window
    order = np.argsort(number, kind="stable")
    inner_row, inner_column = np.divmod(np.arange(merge**2), merge)
    lengths = np.bincount(number) * merge**2
    return _Arrangement(
        order,
        (row[order, None] * merge + inner_row).flatten(),
        (column[order, None] * merge + inner_column).flatten(),
        tuple(lengths.tolist()),
    )


def _block(stock: Any, sees_whole_image: bool) -> _Block:
    """The width between the MLP's products is filled up with zeros, which change no value."""
    attention, mlp = stock.attn, stock.mlp
    missing = -mlp.gate_proj.out_features % _ALIGNMENT
    both = (mlp.gate_proj, mlp.up_proj)
    return _Block(
        stock.norm1.weight,
        attention.qkv,
        attention.proj,
        stock.norm2.weight,
        torch.cat([pad(layer.weight, (0, 0, 0, missing)) for layer in both]),
        torch.cat([pad(layer.bias, (0, missing)) for layer in both]),
        pad(mlp.down_proj.weight, (0, missing)),
        mlp.down_proj.bias,
        sees_whole_image,
    )
