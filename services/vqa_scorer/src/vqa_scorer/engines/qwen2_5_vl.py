"""A Qwen2.5-VL that reads prompts and goes on from them: transformers' weights, with less work.

What is not done twice or not at all: an image goes through the vision tower once and its features are kept; keys and values of
what prompts begin alike with are computed once, for the tokens before the first image, for the first demonstration, and for
further ones that prompts read together share; nothing is padded; and the last layer computes queries, output and MLP for the last
position alone, the only one whose logits are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqa_scorer.engines.attention import Spans
from vqa_scorer.engines.continuation import Continuation
from vqa_scorer.engines.decoding import Advance
from vqa_scorer.engines.elementwise import elementwise
from vqa_scorer.engines.language import Asked, Language
from vqa_scorer.engines.prefixes import EncodedPrompt, Ids, ImageFeatures, Layout, Part, Prefix, PrefixCache, shared_cuts
from vqa_scorer.engines.vision import hasten


def encode(token_ids: Sequence[int], images: Sequence[ImageFeatures], image_token: int) -> EncodedPrompt:
    """A prompt from token ids with ONE placeholder an image, which becomes as many as the image has tokens.

    Positions are M-RoPE's (Qwen2-VL, arXiv 2409.12191, section 2.1): text advances time, height and width by one; the tokens of an
    image share one time, their rows and columns count from there, and the text behind goes on from the largest of them.
    ValueError where placeholders and images are not as many.
    """
    ids: list[Ids] = []
    positions: list[Ids] = []
    starts: list[int] = []
    place = base = 0
    remaining = iter(images)
    placeholders = [index for index, token in enumerate(token_ids) if token == image_token]
    if len(placeholders) != len(images):
        raise ValueError(f"{len(placeholders)} placeholders for {len(images)} images")
    begin = 0
    for end in [*placeholders, len(token_ids)]:
        text = np.array(token_ids[begin:end], dtype=np.int64)
        ids.append(text)
        positions.append(np.broadcast_to(base + np.arange(len(text)), (3, len(text))))
        base, place, begin = base + len(text), place + len(text), end + 1
        if end == len(token_ids):
            break
        image = next(remaining)
        starts.append(place)
        ids.append(np.full(image.tokens, image_token))
        rows, columns = np.divmod(np.arange(image.tokens), image.columns)
        positions.append(base + np.stack([np.zeros_like(rows), rows, columns]))
        base, place = base + max(image.rows, image.columns), place + image.tokens
    return EncodedPrompt(np.concatenate(ids), np.concatenate(positions, axis=1), tuple(images), tuple(starts))


class Decoder:
    """Answers of a loaded `Qwen2_5_VLForConditionalGeneration` in eval mode.

    `shared` are token ids without images that prompts begin with; a prompt that begins otherwise costs more. At most
    `prefix_bytes` of first demonstrations' keys and values are kept.
    """

    def __init__(self, model: Any, *, shared: Sequence[int], prefix_bytes: int = 512 * 2**20) -> None:
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.image_token = int(model.config.image_token_id)
        made = elementwise(self.device, self.dtype)
        self._visual = model.model.visual
        hasten(self._visual, made)
        self._language = Language(model.model.language_model, made)
        self._head = model.lm_head
        self.kept = PrefixCache(prefix_bytes)
        shape = self._language.shape
        nothing = torch.empty((shape.layers, 2, 0, shape.key_heads, shape.width), device=self.device, dtype=self.dtype)
        self._nothing = Prefix((b"", ()), 0, None, nothing)
        self._shared = self._nothing
        if shared:
            prompt = encode(shared, (), self.image_token)
            self._shared = self._read_prefixes([Part(prompt, self._nothing, len(prompt))])[0]

    @property
    def bytes_a_token(self) -> int:
        """Of device memory, roughly, that reading takes for each token: what the widest layer makes of it, its keys and values
        packed and laid out for going on from them."""
        shape = self._language.shape
        values = 3 * shape.intermediate + 8 * shape.hidden + 2 * 2 * shape.layers * shape.key_heads * shape.width
        return values * torch.empty((), dtype=self.dtype).element_size()

    @torch.inference_mode()
    def encode_images(self, patches: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Features [rows · columns, hidden] of images from their patches, in one pass; shapes are (rows, columns) in tokens."""
        merge = int(self._visual.spatial_merge_size)
        grids = torch.tensor([[1, rows * merge, columns * merge] for rows, columns in shapes], device=self.device)
        values = self._visual(torch.cat(list(patches)).to(self.dtype), grid_thw=grids).pooler_output
        # A part that is kept must not keep the whole pass.
        return [part.clone() for part in values.split([rows * columns for rows, columns in shapes])]

    @torch.inference_mode()
    def read(self, prompts: Sequence[EncodedPrompt], *, rows: int, steps: int) -> tuple[Tensor, Advance]:
        """Logits [B, V] behind each prompt, and what goes on from there: at most `rows` rows a prompt, `steps` tokens each."""
        parents = self._prefixes(prompts)
        parts = [Part(prompt, parent, len(prompt)) for prompt, parent in zip(prompts, parents, strict=True)]
        lengths = [len(prompt) for prompt in prompts]
        onward = [int(prompt.positions[:, -1].max()) + 1 for prompt in prompts]
        going_on = Continuation(self._language, lengths, onward, rows=rows, steps=steps, like=self._nothing.cache)
        layout = Layout.of(parts)
        places = np.zeros((len(parts), max(lengths)), dtype=np.int64)
        begin = 0
        for row, length in enumerate(lengths):
            places[row, :length] = layout.order[begin : begin + length]
            begin += length
        where = self._upload(places)
        hidden = self._read(parts, layout, lambda layer, rows: going_on.keep(layer, rows, where), ask=True)
        assert hidden is not None, "it was asked for"

        @torch.inference_mode()
        def advance(tokens: Tensor, rows: Tensor) -> Tensor:
            return self._head(going_on.advance(tokens, rows))

        return self._head(hidden), advance

    def _prefixes(self, prompts: Sequence[EncodedPrompt]) -> list[Prefix]:
        """What each prompt goes on from: the longest start that is worth reading on its own."""
        cuts = shared_cuts(prompts)
        parents = [self._start_of(prompt) for prompt in prompts]
        for depth in range(max(map(len, cuts), default=0)):
            deeper = [index for index, own in enumerate(cuts) if len(own) > depth]
            wanted = {index: Part(prompts[index], parents[index], cuts[index][depth]) for index in deeper}
            found: dict[Any, Prefix] = {}
            for part in wanted.values():
                kept = self.kept.get(part.key) if depth == 0 else None
                if kept is not None:
                    found[part.key] = kept
            missing = {part.key: part for part in wanted.values() if part.key not in found}
            for prefix in self._read_prefixes(list(missing.values())):
                found[prefix.key] = prefix
                if depth == 0:
                    self.kept.put(prefix)
            for index, part in wanted.items():
                parents[index] = found[part.key]
        return parents

    def _start_of(self, prompt: EncodedPrompt) -> Prefix:
        length = self._shared.length
        begins_shared = len(prompt) > length and prompt.token_ids[:length].tobytes() == self._shared.key[0]
        return self._shared if begins_shared else self._nothing

    def _read_prefixes(self, parts: Sequence[Part]) -> list[Prefix]:
        if not parts:
            return []
        layers: list[Tensor] = []
        layout = Layout.of(parts)
        before = layout.rows - sum(part.length for part in parts)
        self._read(parts, layout, lambda _, rows: layers.append(rows[:, before:]), ask=False)
        by_part = torch.stack(layers).split([part.length for part in parts], dim=2)
        # A prefix that is kept must not keep those that were read beside it.
        return [Prefix(part.key, part.stop, part.parent, own.clone()) for part, own in zip(parts, by_part, strict=True)]

    def _read(self, parts: Sequence[Part], layout: Layout, keep: Callable[[int, Tensor], None], *, ask: bool) -> Tensor | None:
        """Reads all parts in one pass → the last hidden states [B, h] if they are asked for.

        `keep` is given each layer's keys and values [2, rows, key heads, width] of `layout`, before they are packed.
        """
        lengths = [part.length for part in parts]
        spans = Spans(lengths, layout.lengths, self.device, causal=True)
        asked = None
        if ask:
            one_each = Spans([1] * len(parts), layout.lengths, self.device, causal=True)
            asked = Asked(self._upload(np.cumsum(lengths) - 1), one_each)
        caches, order = layout.caches(), self._upload(layout.order)
        before = caches.shape[2]

        def gather(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            rows = caches.new_empty((2, layout.rows, *key.shape[1:]))
            rows[:, :before] = caches[layer]
            rows[0, before:], rows[1, before:] = key, value
            keep(layer, rows)
            keys, values = rows[:, order]
            return keys, values

        ids, positions, images = self._inputs(parts)
        hidden = self._language.embed(ids)
        if images is not None:
            hidden[images[0]] = images[1]
        return self._language.read(hidden, positions, spans, gather, asked)

    def _inputs(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Packed token ids [T], positions [3, T], and the rows where images stand with what stands there."""
        ids: list[Ids] = []
        positions: list[Ids] = []
        rows: list[Ids] = []
        features: list[Tensor] = []
        begin = 0
        for part in parts:
            start = part.parent.length
            ids.append(part.prompt.token_ids[start : part.stop])
            positions.append(part.prompt.positions[:, start : part.stop])
            for image, place in zip(part.prompt.images, part.prompt.image_starts, strict=True):
                if start <= place < part.stop:
                    rows.append(begin + place - start + np.arange(image.tokens))
                    features.append(image.values)
            begin += part.length
        packed = self._upload(np.concatenate(ids)), self._upload(np.concatenate(positions, axis=1))
        if not features:
            return *packed, None
        values = torch.cat([one.to(self.device, non_blocking=True) for one in features]).to(self.dtype)
        return *packed, (self._upload(np.concatenate(rows)), values)

    def _upload(self, values: Ids) -> Tensor:
        """On a GPU from pinned memory: the copy waits its turn there, and this thread goes on."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
