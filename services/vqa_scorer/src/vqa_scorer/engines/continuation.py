"""Answers going on behind prompts that were read: keys and values of a prompt are held once, however many rows go on from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vqa_scorer.engines.language import Language, Shape

_MULTIPLE = 8
"""A GPU's attention under a mask is fast for rows of keys that are multiples of 8 only."""


class Continuation:
    """Up to `rows` rows behind each prompt, each up to `steps` tokens long.

    Keys and values lie in [layers, 2, prompts, key heads, places, width]: a prompt's tokens, then `steps` places for each of its
    rows, which only that row sees.
    """

    def __init__(
        self, language: Language, lengths: list[int], next_positions: list[int], *, rows: int, steps: int, like: Tensor
    ) -> None:
        """`lengths` in tokens of the prompts; `next_positions` of the tokens behind them; `like` has device and dtype."""
        self._language = language
        self._rows, self._steps = rows, steps
        self._longest = max(lengths)
        shape = language.shape
        places = -(-(self._longest + rows * steps) // _MULTIPLE) * _MULTIPLE
        # Places that are not written yet are masked, and a NaN would pass through a mask.
        self._cache = like.new_zeros((shape.layers, 2, len(lengths), shape.key_heads, places, shape.width))
        device = like.device
        self._lengths = torch.tensor(lengths, device=device)
        self._next_positions = torch.tensor(next_positions, device=device)
        place = np.arange(places) - self._longest
        self._owner = torch.from_numpy(np.where((place >= 0) & (place < rows * steps), place // max(steps, 1), -1)).to(device)
        self._when = torch.from_numpy(place % max(steps, 1)).to(device)
        self._prompt = self._slot = torch.arange(len(lengths), device=device)
        self._step = 0

    def keep(self, layer: int, first: int, rows: Tensor, places: Tensor) -> None:
        """A layer's keys and values [K, 2, key heads, width]; `places` [prompts, longest] says which are those of the prompts
        from the `first` on."""
        written = self._cache[layer][:, first : first + len(places), :, : places.shape[1]]
        written.copy_(rows[places].permute(2, 0, 3, 1, 4))

    def advance(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Last hidden states [R, h] of tokens [R] behind the rows [R] of the call before; in the first call, behind prompts."""
        self._move(rows)
        step, shape = self._step, self._language.shape
        prompt, slot = self._prompt, self._slot
        position = (self._next_positions[prompt] + step).expand(3, -1)
        prompts, slots = len(self._lengths), self._rows
        # Rows stand in the order of their prompts, so where there are as many as can be, every slot has its row.
        whole = len(rows) == prompts * slots
        places = slice(self._longest + step, self._longest + slots * self._steps, self._steps)
        here = self._longest + slot * self._steps + step
        seen = self._seen(shape)

        def mix(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache = self._cache[layer]
            if whole:
                for part, own in zip(cache, (key, value), strict=True):
                    part[:, :, places] = own.unflatten(0, (prompts, slots)).transpose(1, 2)
                asked = query.unflatten(0, (prompts, slots))
            else:
                for part, own in zip(cache, (key, value), strict=True):
                    part[prompt, :, here] = own
                asked = query.new_zeros((prompts, slots, *query.shape[1:]))
                asked[prompt, slot] = query
            # Rows of one prompt and heads that share a key head read its keys together.
            grouped = asked.unflatten(2, (shape.key_heads, -1)).transpose(1, 2).flatten(2, 3)
            found = scaled_dot_product_attention(grouped, cache[0], cache[1], attn_mask=seen)
            mixed = found.unflatten(2, (slots, -1)).transpose(1, 2).flatten(2, 3)
            return mixed.flatten(0, 1) if whole else mixed[prompt, slot]

        hidden = self._language.step(self._language.embed(tokens), position, mix)
        self._step += 1
        return hidden

    def _move(self, rows: Tensor) -> None:
        """Gives each row a slot of its prompt, with what its parent has written."""
        prompt = self._prompt[rows]
        # Rows come in the order of their prompts, so a row's slot is its distance from the first of its prompt.
        slot = torch.arange(len(rows), device=rows.device) - torch.searchsorted(prompt, prompt)
        if self._step and self._rows > 1:
            written = self._cache[:, :, :, :, self._longest : self._longest + self._rows * self._steps]
            by_slot = written.unflatten(4, (self._rows, self._steps))
            source = by_slot[:, :, prompt, :, self._slot[rows]]
            by_slot[:, :, prompt, :, slot] = source
        self._prompt, self._slot = prompt, slot

    def _seen(self, shape: Shape) -> Tensor:
        """[prompts, 1, rows · heads of a key head, places]"""
        places = torch.arange(self._cache.shape[4], device=self._lengths.device)
        prompt = places < self._lengths[:, None]
        slots = torch.arange(self._rows, device=self._lengths.device)
        own = (self._owner == slots[:, None]) & (self._when <= self._step)
        seen = (prompt[:, None] | own).repeat_interleave(shape.heads // shape.key_heads, dim=1)
        return seen[:, None]
