"""Greedy answers to many zero-, one- and two-shot pointers over the same few items: what they share is computed once.

A prompt is start | first demonstration | second demonstration | query, each a run of tokens that is tokenised alone, since every
one ends where a special token begins. Keys and values of the start, and of every item as first demonstration, are kept: neither
depends on what follows. What is computed for a pointer is its second demonstration and its query. Rows of one batch have the
same layout, so that one mask and one table of positions serve all of them, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from leverplus.dataset import Dataset
from leverplus.errors import InvalidConfig
from leverplus.images import read_image
from leverplus.prompts import PromptTemplate, Shot
from vqa_scorer.engines.features import ImageFeatures
from vqa_scorer.engines.prefixes import ImageShape
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.qwen2_5_vl import encode

Precision = Literal["float32", "tf32", "bfloat16"]
Layout = tuple[int, int, int]
"""Tokens of a segment; rows and columns of its image's tokens."""
Ids = npt.NDArray[np.int64]

NONE = -1
"""Stands for a demonstration that a pointer does not have."""
_NO_LAYOUT: Layout = (0, 0, 0)


@dataclass(frozen=True)
class Segments:
    """Items as they stand in a prompt: token ids [N, longest] (0 behind the end), visual tokens [N, tokens, hidden]."""

    token_ids: Tensor
    pictures: Tensor
    layouts: list[Layout]


class SharedPrefixScorer:
    """A Qwen2.5-VL of small vocabulary in a transformers directory, on one device, in eval mode.

    Matrix products are exact float32, or round their factors to TF32, or all values are bfloat16. `load` names the items that
    may be queries and demonstrations; their numbers there are what `answers` takes.
    """

    def __init__(
        self, model_dir: Path, template: PromptTemplate, *, device: torch.device, precision: Precision, max_new_tokens: int
    ) -> None:
        self.device, self.precision, self.max_new_tokens = device, precision, max_new_tokens
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._processor, self._template = load_processor(model_dir), template
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=self._dtype, local_files_only=True)
        self._model = loaded.to(device).eval()
        self._language = self._model.model.language_model
        self._epsilon = float(self._model.config.text_config.rms_norm_eps)
        self._image_token = int(self._model.config.image_token_id)
        stop = self._model.generation_config.eos_token_id
        self._stop = torch.tensor(stop if isinstance(stop, list) else [stop], device=device)
        if int(self._model.config.text_config.vocab_size) ** max_new_tokens >= 2**63:
            raise InvalidConfig(field="model", reason=f"{model_dir}: its vocabulary is too large for an answer in 64 bits")
        self._positions: dict[tuple[Layout, Layout, Layout], Tensor] = {}

    def load(self, dataset: Dataset, demonstrations: Sequence[int], queries: Sequence[int]) -> None:
        """Tokens and pictures of all items, and the keys and values of each demonstration that comes first."""
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        bare = self._text((), Shot(Path(), ""))
        start = bare.split(self._processor.image_token)[0]
        self._start = self._token_ids(start)
        pictures = self._pictures(dataset, sorted({*demonstrations, *queries}))
        shown = [self._demonstration(dataset, item_id, start, pictures) for item_id in demonstrations]
        asked = [self._query(dataset, item_id, start, pictures) for item_id in queries]
        self.demonstrations, self.queries = self._segments(shown), self._segments(asked)
        self._keep_first_demonstrations()

    @torch.inference_mode()
    def answers(self, pointers: Ids, *, batch_tokens: int) -> Ids:
        """pointers [N, 3]: first demonstration, second, query, as numbers in `load`'s lists. A missing one is NONE; a single one
        comes first. → [N] the tokens written, packed into a number; `text` reads it. `batch_tokens` bounds what a pass computes.
        """
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        packed = torch.zeros(len(pointers), dtype=torch.int64, device=self.device)
        for (first, second, query), members in self._groups(pointers).items():
            rows = max(1, batch_tokens // (second[0] + query[0]))
            for begin in range(0, len(members), rows):
                chosen = torch.from_numpy(members[begin : begin + rows])
                batch = torch.from_numpy(pointers[members[begin : begin + rows]]).to(self.device)
                packed[chosen.to(self.device)] = self._write(batch, first, second, query)
        return packed.cpu().numpy()

    def text(self, packed: int) -> str:
        """What the scorer's engine would give for these tokens."""
        size, tokens = len(self._language.embed_tokens.weight), list[int]()
        while packed:
            packed, digit = divmod(packed, size + 1)
            tokens.append(digit - 1)
        return self._processor.tokenizer.batch_decode([tokens], skip_special_tokens=True)[0]

    def _groups(self, pointers: Ids) -> dict[tuple[Layout, Layout, Layout], Ids]:
        """Indices of the pointers of each layout."""
        kinds = sorted({_NO_LAYOUT, *self.demonstrations.layouts, *self.queries.layouts})
        number = {layout: index for index, layout in enumerate(kinds)}
        demonstration = np.array([number[one] for one in (*self.demonstrations.layouts, _NO_LAYOUT)])  # NONE is the last
        query = np.array([number[one] for one in self.queries.layouts])
        codes = np.stack([demonstration[pointers[:, 0]], demonstration[pointers[:, 1]], query[pointers[:, 2]]])
        code = np.asarray(np.ravel_multi_index(tuple(codes), (len(kinds),) * 3))
        order = np.argsort(code, kind="stable")
        found, begins = np.unique(code[order], return_index=True)
        unpacked = np.asarray(np.unravel_index(found, (len(kinds),) * 3)).T
        keys = [(kinds[a], kinds[b], kinds[q]) for a, b, q in unpacked.tolist()]
        return dict(zip(keys, np.split(order, begins[1:]), strict=True))

    def _write(self, batch: Tensor, first: Layout, second: Layout, query: Layout) -> Tensor:
        """Packed answers [B] of pointers [B, 3] of one layout."""
        rows, skip = len(batch), len(self._start) + first[0]
        parts = [(self.demonstrations, 1, second)] if second[0] else []
        hidden = torch.cat(
            [self._embed(s, batch[:, column], layout) for s, column, layout in [*parts, (self.queries, 2, query)]], dim=1
        )
        positions = self._positions_of(first, second, query)
        length = skip + hidden.shape[1]
        cache: list[tuple[Tensor, Tensor]] = []
        for kept in self._first:  # the start comes with every item's own, so that one gather brings both
            shape = (rows, kept[0].shape[1], length + self.max_new_tokens, kept[0].shape[3])
            keys, values = (torch.empty(shape, dtype=hidden.dtype, device=self.device) for _ in kept)
            for buffer, source in zip((keys, values), kept, strict=True):
                # row NONE + 1 = 0 is the start alone
                buffer[:, :, :skip] = source[:, :, :skip].index_select(0, batch[:, 0] + 1)
            cache.append((keys, values))
        hidden = self._forward(hidden, positions[:, skip:], cache, skip)
        place = int(positions[:, -1].max()) + 1
        ended = torch.zeros(rows, dtype=torch.bool, device=self.device)
        packed = torch.zeros(rows, dtype=torch.int64, device=self.device)
        for step in range(self.max_new_tokens):
            token = self._model.lm_head(hidden[:, -1]).argmax(dim=-1)
            ended = ended | torch.isin(token, self._stop)
            packed += torch.where(ended, 0, (token + 1) * (len(self._language.embed_tokens.weight) + 1) ** step)
            if step + 1 == self.max_new_tokens or bool(ended.all()):
                break
            here = torch.full((3, 1), place + step, device=self.device)
            hidden = self._forward(self._language.embed_tokens(token[:, None]), here, cache, length + step)
        return packed

    def _forward(self, hidden: Tensor, positions: Tensor, cache: list[tuple[Tensor, Tensor]], skip: int) -> Tensor:
        """hidden [B, L, h] at positions [3, L], behind `skip` tokens of the cache, where its own are added → last [B, 1, h]."""
        rows, length = hidden.shape[:2]
        cos, sin = self._language.rotary_emb(hidden, positions[:, None])
        layers, end = self._language.layers, skip + length
        last = len(layers) - 1
        mask = self._mask(length, skip, layers[0].self_attn.num_key_value_groups) if length > 1 else None
        for number, (layer, (keys, values)) in enumerate(zip(layers, cache, strict=True)):
            attention = layer.self_attn
            groups, width = attention.num_key_value_groups, attention.head_dim
            normed = rms_norm(hidden, hidden.shape[-1:], layer.input_layernorm.weight, self._epsilon)
            asking = slice(-1, None) if number == last else slice(None)
            query = attention.q_proj(normed[:, asking]).unflatten(2, (-1, width)).transpose(1, 2)
            key = attention.k_proj(normed).unflatten(2, (-1, width)).transpose(1, 2)
            query, _ = apply_rotary_pos_emb(query, query[:, :1], cos[:, asking], sin[:, asking])
            key, _ = apply_rotary_pos_emb(key, key[:, :1], cos, sin)
            keys[:, :, skip:end] = key
            values[:, :, skip:end] = attention.v_proj(normed).unflatten(2, (-1, width)).transpose(1, 2)
            # the query heads of one key head stand one below the other: no key is repeated
            stacked = query.reshape(rows, -1, groups * query.shape[2], width)
            seen = None if number == last else mask
            mixed = scaled_dot_product_attention(stacked, keys[:, :, :end], values[:, :, :end], attn_mask=seen)
            mixed = mixed.reshape(rows, -1, query.shape[2], width).transpose(1, 2).flatten(2)
            hidden = hidden[:, asking] + attention.o_proj(mixed)
            normed = rms_norm(hidden, hidden.shape[-1:], layer.post_attention_layernorm.weight, self._epsilon)
            hidden = hidden + layer.mlp.down_proj(silu(layer.mlp.gate_proj(normed)).mul_(layer.mlp.up_proj(normed)))
        return rms_norm(hidden, hidden.shape[-1:], self._language.norm.weight, self._epsilon)

    def _mask(self, length: int, skip: int, groups: int) -> Tensor:
        """[groups · length, skip + length], added to the logits. Rows lie 16 numbers apart, as the GPU's attention wants them."""
        hidden = torch.ones(length, -(-(skip + length) // 16) * 16, dtype=torch.bool, device=self.device).triu(skip + 1)
        added = torch.zeros(hidden.shape, dtype=self._dtype, device=self.device).masked_fill(hidden, -torch.inf)
        return added.repeat(groups, 1)[:, : skip + length]

    @torch.inference_mode()
    def _keep_first_demonstrations(self) -> None:
        """`_first`: for each layer keys and values [1 + N, key heads, longest, width], row 0 of the start without any item."""
        start = torch.tensor(self._start, device=self.device)
        layers, count = self._language.layers, len(self.demonstrations.layouts)
        width, heads = layers[0].self_attn.head_dim, layers[0].self_attn.k_proj.out_features // layers[0].self_attn.head_dim
        longest = len(start) + self.demonstrations.token_ids.shape[1]

        def room(rows: int) -> list[tuple[Tensor, Tensor]]:
            empty = torch.zeros((rows, heads, longest, width), dtype=self._dtype, device=self.device)
            return [(empty.clone(), empty.clone()) for _ in layers]

        self._first = room(1 + count)
        words = self._language.embed_tokens(start)[None]
        cache = room(1)
        self._forward(words, torch.arange(len(start), device=self.device).expand(3, -1), cache, 0)
        self._copy(cache, torch.zeros(1, dtype=torch.int64, device=self.device))
        for layout in sorted(set(self.demonstrations.layouts)):
            same = [index for index, one in enumerate(self.demonstrations.layouts) if one == layout]
            for begin in range(0, len(same), 512):
                rows = torch.tensor(same[begin : begin + 512], device=self.device)
                cache = room(len(rows))
                hidden = torch.cat([words.expand(len(rows), -1, -1), self._embed(self.demonstrations, rows, layout)], dim=1)
                self._forward(hidden, self._positions_of(layout, _NO_LAYOUT, _NO_LAYOUT), cache, 0)
                self._copy(cache, rows + 1)

    def _copy(self, cache: list[tuple[Tensor, Tensor]], rows: Tensor) -> None:
        for (keys, values), (new_keys, new_values) in zip(self._first, cache, strict=True):
            keys[rows], values[rows] = new_keys, new_values

    def _embed(self, segments: Segments, rows: Tensor, layout: Layout) -> Tensor:
        """Segments [B] of one layout → [B, length, h]; a segment begins with its picture."""
        hidden = self._language.embed_tokens(segments.token_ids[rows, : layout[0]])
        hidden[:, : layout[1] * layout[2]] = segments.pictures[rows, : layout[1] * layout[2]]
        return hidden

    def _positions_of(self, first: Layout, second: Layout, query: Layout) -> Tensor:
        """M-RoPE positions [3, L] of the whole prompt."""
        key = (first, second, query)
        if key not in self._positions:
            ids, images = list(self._start), list[ImageShape]()
            for length, rows, columns in key:
                ids += [self._image_token] * (length > 0) + [NONE] * (length - rows * columns)
                images += [ImageShape(None, rows, columns)] if length else []
            self._positions[key] = torch.from_numpy(encode(ids, images, self._image_token).positions).to(self.device)
        return self._positions[key]

    @torch.inference_mode()
    def _pictures(self, dataset: Dataset, item_ids: Sequence[int]) -> dict[Path, ImageFeatures]:
        """Each image once through the vision tower, 256 at a time."""
        paths = sorted({dataset.image_path(item_id) for item_id in item_ids})
        merge = int(self._model.model.visual.spatial_merge_size)
        found: dict[Path, ImageFeatures] = {}
        for begin in range(0, len(paths), 256):
            batch = paths[begin : begin + 256]
            made = self._processor.image_processor(images=[read_image(path) for path in batch], return_tensors="pt")
            patches, grid = made["pixel_values"].to(self.device, self._dtype), made["image_grid_thw"]
            values = self._model.model.visual(patches, grid_thw=grid.to(self.device)).pooler_output
            sizes = [(int(rows) // merge, int(columns) // merge) for _, rows, columns in grid.tolist()]
            for path, part, (rows, columns) in zip(batch, values.split([r * c for r, c in sizes]), sizes, strict=True):
                found[path] = ImageFeatures(ImageShape(path, rows, columns), part)
        return found

    def _demonstration(
        self, dataset: Dataset, item_id: int, start: str, pictures: dict[Path, ImageFeatures]
    ) -> tuple[list[int], ImageFeatures]:
        item, path = dataset.item(item_id), dataset.image_path(item_id)
        ending = self._text((), Shot(Path(), ""))[len(start) :]
        text = self._text((Shot(path, item.question, item.answer),), Shot(Path(), ""))[len(start) :]
        return self._segment(text.removesuffix(ending), pictures[path])

    def _query(
        self, dataset: Dataset, item_id: int, start: str, pictures: dict[Path, ImageFeatures]
    ) -> tuple[list[int], ImageFeatures]:
        path = dataset.image_path(item_id)
        return self._segment(self._text((), Shot(path, dataset.item(item_id).question))[len(start) :], pictures[path])

    def _segment(self, text: str, image: ImageFeatures) -> tuple[list[int], ImageFeatures]:
        """Text from the image placeholder up to where the next image stands → ids with one placeholder a visual token."""
        placeholder: str = self._processor.image_token
        if not text.startswith(placeholder) or text.count(placeholder) != 1:
            raise InvalidConfig(field="chat template", reason=f"a prompt's part does not begin with its only image: {text!r}")
        return self._token_ids(placeholder * (image.shape.tokens - 1) + text), image

    def _segments(self, made: Sequence[tuple[list[int], ImageFeatures]]) -> Segments:
        longest, most = max(len(ids) for ids, _ in made), max(image.shape.tokens for _, image in made)
        token_ids = torch.zeros(len(made), longest, dtype=torch.int64)
        pictures = torch.zeros(len(made), most, made[0][1].values.shape[1], dtype=self._dtype, device=self.device)
        for row, (ids, image) in enumerate(made):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            pictures[row, : image.shape.tokens] = image.values
        layouts = [(len(ids), image.shape.rows, image.shape.columns) for ids, image in made]
        return Segments(token_ids.to(self.device), pictures, layouts)

    def _text(self, demonstrations: Sequence[Shot], query: Shot) -> str:
        messages = self._template.messages(demonstrations, query)
        return self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _token_ids(self, text: str) -> list[int]:
        return self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
