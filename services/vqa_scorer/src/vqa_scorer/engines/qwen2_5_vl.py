"""A Qwen2.5-VL that reads prompts and goes on from them: transformers' weights, with less work.

What is not done twice or not at all: an image goes through the vision tower once and its features are kept; keys and values of
what prompts begin alike with are computed once, for the tokens before the first image, for the first demonstration, and for
further ones that prompts read together share; nothing is padded; and the last layer computes queries, output and MLP for the last
position alone, the only one whose logits are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqa_scorer.engines.attention import Spans, upload
from vqa_scorer.engines.continuation import Continuation
from vqa_scorer.engines.decoding import Advance
from vqa_scorer.engines.elementwise import elementwise
from vqa_scorer.engines.language import Asked, Language
from vqa_scorer.engines.prefixes import (
    EncodedPrompt,
    Features,
    Ids,
    ImageShape,
    Key,
    Layout,
    Part,
    Prefix,
    PrefixCache,
    runs,
    shared_cuts,
)
from vqa_scorer.engines.vision import VisionTower

TOKENS_PER_PASS = 65_536
"""That are read together: more make a GPU's matrix products no faster, and its kernels count no further than 2³¹ values."""


def encode(token_ids: Sequence[int], images: Sequence[ImageShape], image_token: int) -> EncodedPrompt:
    """A prompt from token ids with ONE placeholder an image, which becomes as many as the image has tokens.

    Positions are M-RoPE's (Qwen2-VL, arXiv 2409.12191, section 2.1): text advances time, height and width by one; the tokens of
    an image share one time, their rows and columns count from there, and the text behind goes on from the largest of them.
    ValueError where placeholders and images are not as many.
    """
    given = np.array(token_ids, dtype=np.int64)
    placeholders = np.flatnonzero(given == image_token)
    if len(placeholders) != len(images):
        raise ValueError(f"{len(placeholders)} placeholders for {len(images)} images")
    positions: list[Ids] = []
    starts: list[int] = []
    begin = base = place = 0
    for end, image in zip(placeholders.tolist(), images, strict=True):
        text = end - begin
        positions += [np.broadcast_to(np.arange(base, base + text), (3, text)), base + text + _grid(image.rows, image.columns)]
        starts.append(place + text)
        base, place, begin = base + text + max(image.rows, image.columns), place + text + image.tokens, end + 1
    rest = len(given) - begin
    positions.append(np.broadcast_to(np.arange(base, base + rest), (3, rest)))
    repeats = np.ones_like(given)
    repeats[placeholders] = [image.tokens for image in images]
    return EncodedPrompt(given.repeat(repeats), np.concatenate(positions, axis=1), tuple(images), tuple(starts))


@lru_cache(maxsize=1024)
def _grid(rows: int, columns: int) -> Ids:
    """[3, rows · columns]: time, row and column of an image's tokens"""
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([np.zeros_like(row), row, column])


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
        self._visual = VisionTower(model.model.visual, made)
        self._language = Language(model.model.language_model, made)
        self._head = model.lm_head
        self.kept = PrefixCache(prefix_bytes)
        self.prefix_hits = self.prefix_misses = 0
        shape = self._language.shape
        nothing = torch.empty((shape.layers, 0, 2, shape.key_heads, shape.width), device=self.device, dtype=self.dtype)
        self._nothing = Prefix((b"", ()), 0, None, nothing)
        self._shared = self._nothing
        self.tokens_a_pass = TOKENS_PER_PASS
        if shared:
            prompt = encode(shared, (), self.image_token)
            self._shared = self._read_prefixes([Part(prompt, self._nothing, len(prompt))], {})[0]

    @property
    def bytes_a_token_read(self) -> int:
        """Of device memory, roughly, that a pass takes for each token: what the widest layer makes of it."""
        shape = self._language.shape
        return (3 * shape.intermediate + 8 * shape.hidden) * self._nothing.cache.element_size()

    @property
    def bytes_a_token_kept(self) -> int:
        """Of a prompt's token while its answer goes on: keys and values, and those of prefixes beside them."""
        shape = self._language.shape
        return 2 * 2 * shape.layers * shape.key_heads * shape.width * self._nothing.cache.element_size()

    @torch.inference_mode()
    def encode_images(self, patches: Tensor, shapes: Sequence[ImageShape]) -> list[Tensor]:
        """Features [tokens, hidden] of images from the patches [Σ patches, …] of all of them, in one pass."""
        return self._visual.features(patches, shapes)

    @torch.inference_mode()
    def read(self, prompts: Sequence[EncodedPrompt], features: Features, *, rows: int, steps: int) -> tuple[Tensor, Advance]:
        """Logits [B, V] behind each prompt, and what goes on from there: at most `rows` rows a prompt, `steps` tokens each."""
        parents = self._prefixes(prompts, features)
        parts = [Part(prompt, parent, len(prompt)) for prompt, parent in zip(prompts, parents, strict=True)]
        lengths = [len(prompt) for prompt in prompts]
        onward = [int(prompt.positions[:, -1].max()) + 1 for prompt in prompts]
        going_on = Continuation(self._language, lengths, onward, rows=rows, steps=steps, like=self._nothing.cache)
        hidden: list[Tensor] = []
        first = 0
        for run in runs(parts, self.tokens_a_pass):
            layout = Layout.of(run)
            keep = partial(self._keep, going_on, first, upload(layout.places(), self.device))
            found = self._read(run, layout, features, keep, ask=True)
            assert found is not None, "it was asked for"
            hidden.append(found)
            first += len(run)

        @torch.inference_mode()
        def advance(tokens: Tensor, rows: Tensor) -> Tensor:
            return self._head(going_on.advance(tokens, rows))

        return self._head(torch.cat(hidden)), advance

    @staticmethod
    def _keep(going_on: Continuation, first: int, places: Tensor, layer: int, rows: Tensor) -> None:
        going_on.keep(layer, first, rows, places)

    def _prefixes(self, prompts: Sequence[EncodedPrompt], features: Features) -> list[Prefix]:
        """What each prompt goes on from: the longest start that is worth reading on its own."""
        cuts = shared_cuts(prompts)
        parents = [self._start_of(prompt) for prompt in prompts]
        for depth in range(max(map(len, cuts), default=0)):
            wanted = {
                index: Part(prompts[index], parents[index], own[depth]) for index, own in enumerate(cuts) if len(own) > depth
            }
            found: dict[Key, Prefix] = {}
            missing: dict[Key, Part] = {}
            for part in wanted.values():
                kept = self.kept.get(part.key) if depth == 0 else None
                if kept is not None:
                    found[part.key] = kept
                else:
                    missing[part.key] = part
                if depth == 0:
                    self.prefix_hits += kept is not None
                    self.prefix_misses += kept is None
            for run in runs(list(missing.values()), self.tokens_a_pass):
                found |= {prefix.key: prefix for prefix in self._read_prefixes(run, features)}
            if depth == 0:
                for key in missing:
                    self.kept.put(found[key])
            parents = [found[wanted[index].key] if index in wanted else parent for index, parent in enumerate(parents)]
        return parents

    def _start_of(self, prompt: EncodedPrompt) -> Prefix:
        length = self._shared.length
        begins_shared = len(prompt) > length and prompt.token_ids[:length].tobytes() == self._shared.key[0]
        return self._shared if begins_shared else self._nothing

    def _read_prefixes(self, parts: Sequence[Part], features: Features) -> list[Prefix]:
        """Reads parts in one pass."""
        layers: list[Tensor] = []
        layout = Layout.of(parts)
        before = layout.rows - sum(part.length for part in parts)
        self._read(parts, layout, features, lambda _, rows: layers.append(rows[before:]), ask=False)
        by_part = torch.stack(layers).split([part.length for part in parts], dim=1)
        # A prefix that is kept must not keep those that were read beside it.
        return [Prefix(part.key, part.stop, part.parent, own.clone()) for part, own in zip(parts, by_part, strict=True)]

    def _read(
        self, parts: Sequence[Part], layout: Layout, features: Features, keep: Callable[[int, Tensor], None], *, ask: bool
    ) -> Tensor | None:
        """Reads parts in one pass → the last hidden states [B, h] if they are asked for.

        `keep` is given each layer's keys and values [rows, 2, key heads, width] of `layout`, before they are packed.
        """
        lengths = [part.length for part in parts]
        spans = Spans(lengths, layout.lengths, self.device, causal=True)
        asked = None
        if ask:
            one_each = Spans([1] * len(parts), layout.lengths, self.device, causal=True)
            asked = Asked(upload(np.cumsum(lengths) - 1, self.device), one_each)
        caches, order = layout.caches(), upload(layout.order, self.device)
        before = caches.shape[1]

        def gather(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            rows = caches.new_empty((layout.rows, 2, *key.shape[1:]))
            rows[:before] = caches[layer]
            rows[before:, 0], rows[before:, 1] = key, value
            keep(layer, rows)
            keys, values = rows[order].unbind(1)
            return keys, values

        ids, positions = self._inputs(parts)
        hidden = self._language.embed(ids)
        self._place_images(hidden, parts, features)
        return self._language.read(hidden, positions, spans, gather, asked)

    def _inputs(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Packed token ids [T] and positions [3, T]"""
        ids = [part.prompt.token_ids[part.parent.length : part.stop] for part in parts]
        positions = [part.prompt.positions[:, part.parent.length : part.stop] for part in parts]
        return upload(np.concatenate(ids), self.device), upload(np.concatenate(positions, axis=1), self.device)

    def _place_images(self, hidden: Tensor, parts: Sequence[Part], features: Features) -> None:
        """Writes the features of images over the embeddings [T, h] of their placeholders."""
        rows: list[Ids] = []
        values: list[Tensor] = []
        begin = 0
        for part in parts:
            start = part.parent.length
            for image, place in zip(part.prompt.images, part.prompt.image_starts, strict=True):
                if start <= place < part.stop:
                    rows.append(begin + place - start + np.arange(image.tokens))
                    values.append(features[image].to(self.device, non_blocking=True))
            begin += part.length
        if rows:
            hidden[upload(np.concatenate(rows), self.device)] = torch.cat(values).to(hidden.dtype)
