"""A Qwen2.5-VL that reads prompts and goes on from them: transformers' weights and modules, with less work.

Three things are not done twice or not at all: an image goes through the vision tower once and its features are kept; keys and
values of what prompts begin alike with are computed once, for the tokens before the first image and for those of the first
demonstration; and the last layer computes queries, output and MLP for the last position alone, the only one whose logits are
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from vqa_scorer.engines.decoding import Advance
from vqa_scorer.engines.prefixes import KeysAndValues, Prefix, PrefixCache, join, round_up
from vqa_scorer.engines.windows import batch_windows


@dataclass(frozen=True)
class ImageFeatures:
    """One image after the vision tower: values [tokens, hidden]; the rows and columns of its tokens."""

    values: Tensor
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Places in the prompt."""
        return self.rows * self.columns


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids with one placeholder a visual token, and the images in prompt order."""

    token_ids: list[int]
    images: tuple[ImageFeatures, ...]


def second_image(token_ids: Sequence[int], image_token: int) -> int | None:
    """Where the placeholders of the second image begin; None in a prompt of one image."""
    inside, images = False, 0
    for place, token in enumerate(token_ids):
        if token == image_token and not inside:
            images += 1
            if images == 2:
                return place
        inside = token == image_token
    return None


def rope_positions(token_ids: Sequence[int], images: Sequence[ImageFeatures], image_token: int) -> Tensor:
    """M-RoPE positions [3, L] (time, height, width) of a prompt of still images (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text advances all three by one. The tokens of an image share one time; their rows and columns count from there, and the
    text behind it goes on from the largest of them.
    """
    columns: list[Tensor] = []
    base, index = 0, 0
    remaining = iter(images)
    while index < len(token_ids):
        if token_ids[index] != image_token:
            stop = index
            while stop < len(token_ids) and token_ids[stop] != image_token:
                stop += 1
            columns.append(torch.arange(base, base + stop - index).expand(3, -1))
            base += stop - index
            index = stop
            continue
        image = next(remaining)
        row = torch.arange(image.rows).repeat_interleave(image.columns)
        column = torch.arange(image.columns).repeat(image.rows)
        columns.append(base + torch.stack([torch.zeros_like(row), row, column]))
        base += max(image.rows, image.columns)
        index += image.tokens
    return torch.cat(columns, dim=1)


class Decoder:
    """Answers of a loaded `Qwen2_5_VLForConditionalGeneration` in eval mode.

    `shared` are token ids without images that prompts begin with; a prompt that begins otherwise costs more. At most
    `prefix_bytes` of first demonstrations' keys and values are kept.
    """

    def __init__(self, model: Any, *, shared: Sequence[int], pad: int, prefix_bytes: int = 512 * 2**20) -> None:
        self._language = model.model.language_model
        self._visual = model.model.visual
        batch_windows(self._visual)
        self._head = model.lm_head
        self._image_token = int(model.config.image_token_id)
        self._device: torch.device = model.device
        self._dtype: torch.dtype = model.dtype
        self._pad = pad
        # A GPU's attention with a mask is fast for lengths that are multiples of 8 only.
        self._multiple = 8 if self._device.type == "cuda" else 1
        self._kept = PrefixCache(prefix_bytes)
        empty = [self._no_keys(layer.self_attn) for layer in self._language.layers]
        self._nothing = Prefix((), (), empty)
        self._shared = self._nothing
        if shared:
            self._shared = self._extended([EncodedPrompt(list(shared), ())], [self._nothing])[0]

    @torch.inference_mode()
    def encode_images(self, patches: Sequence[Tensor], grids: Sequence[Tensor]) -> list[ImageFeatures]:
        """Features of images from the processor's `pixel_values` and `image_grid_thw` [1, 3] of each, in one pass."""
        merge = int(self._visual.spatial_merge_size)
        shapes = [(int(grid[0, 1]) // merge, int(grid[0, 2]) // merge) for grid in grids]
        joined = torch.cat([part.to(self._device, self._dtype, non_blocking=True) for part in patches])
        values = self._visual(joined, grid_thw=torch.cat(list(grids)).to(self._device)).pooler_output
        parts = values.split([rows * columns for rows, columns in shapes])
        # A part that is kept must not keep the whole pass.
        return [ImageFeatures(part.clone(), *shape) for part, shape in zip(parts, shapes, strict=True)]

    @torch.inference_mode()
    def read(self, prompts: Sequence[EncodedPrompt]) -> tuple[Tensor, Advance]:
        """Logits [B, V] behind each prompt, and what goes on from there."""
        hidden, cache, visible, place = self._read_behind(prompts, self._prefixes(prompts))

        @torch.inference_mode()
        def advance(tokens: Tensor, rows: Tensor) -> Tensor:
            nonlocal cache, place, visible
            cache = [(key[rows], value[rows]) for key, value in cache]
            visible = torch.cat([visible[rows], visible.new_ones(len(rows), 1)], dim=1)
            here = place[:, rows]
            place = here + 1
            embedded = self._language.embed_tokens(tokens[:, None])
            hidden, cache = self._forward(embedded, here.expand(3, -1, -1), visible[:, None, None, :], cache)
            return self._head(hidden[:, -1])

        return self._head(hidden[:, -1]), advance

    def _prefixes(self, prompts: Sequence[EncodedPrompt]) -> list[Prefix]:
        """What each prompt begins with: up to its second image where it has one, else the shared start, else nothing."""
        cuts: list[EncodedPrompt | None] = []
        for prompt in prompts:
            place = second_image(prompt.token_ids, self._image_token)
            cuts.append(None if place is None else EncodedPrompt(prompt.token_ids[:place], prompt.images[:1]))
        wanted = {Prefix.key_of(cut.token_ids, cut.images): cut for cut in cuts if cut is not None}
        found = {key: prefix for key in wanted if (prefix := self._kept.get(key)) is not None}
        missing = [cut for key, cut in wanted.items() if key not in found]
        if missing:
            for prefix in self._extended(missing, [self._start_of(cut) for cut in missing]):
                self._kept.put(prefix)
                found[prefix.key] = prefix
        return [
            self._start_of(prompt) if cut is None else found[Prefix.key_of(cut.token_ids, cut.images)]
            for prompt, cut in zip(prompts, cuts, strict=True)
        ]

    def _start_of(self, prompt: EncodedPrompt) -> Prefix:
        shared = list(self._shared.token_ids)
        begins_shared = prompt.token_ids[: len(shared)] == shared and len(prompt.token_ids) > len(shared)
        return self._shared if begins_shared else self._nothing

    def _extended(self, prompts: Sequence[EncodedPrompt], starts: Sequence[Prefix]) -> list[Prefix]:
        """The whole prompts as prefixes, each going on from its start."""
        _, cache, visible, _ = self._read_behind(prompts, starts)
        made: list[Prefix] = []
        for row, prompt in enumerate(prompts):
            own = [(key[row][:, visible[row]], value[row][:, visible[row]]) for key, value in cache]
            made.append(Prefix(tuple(prompt.token_ids), prompt.images, own))
        return made

    def _read_behind(
        self, prompts: Sequence[EncodedPrompt], starts: Sequence[Prefix]
    ) -> tuple[Tensor, KeysAndValues, Tensor, Tensor]:
        """Reads what stands behind each start: last hidden states [B, 1, h], keys and values, which of them are no padding
        [B, start + width], and the next position [1, B, 1]."""
        lengths = [len(prompt.token_ids) - len(start.token_ids) for prompt, start in zip(prompts, starts, strict=True)]
        width = round_up(max(lengths), self._multiple)
        ids = torch.full((len(prompts), width), self._pad)
        positions = torch.zeros((3, len(prompts), width), dtype=torch.long)
        visible = torch.zeros((len(prompts), width), dtype=torch.bool)
        images: list[Tensor] = []
        for row, (prompt, start, length) in enumerate(zip(prompts, starts, lengths, strict=True)):
            skip = len(start.token_ids)
            ids[row, width - length :] = torch.tensor(prompt.token_ids[skip:])
            positions[:, row, width - length :] = rope_positions(prompt.token_ids, prompt.images, self._image_token)[:, skip:]
            visible[row, width - length :] = True
            images += [image.values for image in prompt.images[len(start.images) :]]
        ids, positions, visible = (value.to(self._device) for value in (ids, positions, visible))
        hidden = self._language.embed_tokens(ids)
        if images:
            hidden[ids == self._image_token] = torch.cat(images).to(hidden.dtype)
        cache, before = join(starts, self._device, multiple=self._multiple)
        # [B, 1, width, start + width]: the start, and what lies before a token in its own row. A padded column sees itself, so
        # that no row of the attention is empty.
        causal = torch.ones(width, width, dtype=torch.bool, device=self._device).tril()
        own = (causal & visible[:, None, :]) | torch.eye(width, dtype=torch.bool, device=self._device)
        mask = torch.cat([before[:, None].expand(-1, width, -1), own], dim=2)[:, None]
        hidden, cache = self._forward(hidden, positions, mask, cache)
        place = positions[:, :, -1:].amax(dim=0, keepdim=True) + 1
        return hidden, cache, torch.cat([before, visible], dim=1), place

    def _forward(self, hidden: Tensor, positions: Tensor, mask: Tensor, cache: KeysAndValues) -> tuple[Tensor, KeysAndValues]:
        """hidden [B, L, h], positions [3, B, L], mask [B, 1, L, cached + L] → the last position's [B, 1, h], grown cache."""
        cos, sin = self._language.rotary_emb(hidden, positions)
        grown: KeysAndValues = []
        last = len(self._language.layers) - 1
        for number, layer in enumerate(self._language.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            asking = slice(-1, None) if number == last else slice(None)
            query = _heads(attention.q_proj(normed[:, asking]), attention.head_dim)
            key, value = (_heads(project(normed), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
            query, _ = apply_rotary_pos_emb(query, query, cos[:, asking], sin[:, asking])
            key, _ = apply_rotary_pos_emb(key, key, cos, sin)
            key, value = torch.cat([cache[number][0], key], dim=2), torch.cat([cache[number][1], value], dim=2)
            grown.append((key, value))
            groups = attention.num_key_value_groups
            mixed = scaled_dot_product_attention(
                query,
                key.repeat_interleave(groups, dim=1),
                value.repeat_interleave(groups, dim=1),
                attn_mask=mask[:, :, asking],
            )
            hidden = hidden[:, asking] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self._language.norm(hidden), grown

    def _no_keys(self, attention: Any) -> tuple[Tensor, Tensor]:
        heads = attention.k_proj.out_features // attention.head_dim
        empty = torch.empty(heads, 0, attention.head_dim, device=self._device, dtype=self._dtype)
        return empty, empty


def _heads(values: Tensor, width: int) -> Tensor:
    """[B, L, heads · width] → [B, heads, L, width]"""
    return values.unflatten(2, (-1, width)).transpose(1, 2)
