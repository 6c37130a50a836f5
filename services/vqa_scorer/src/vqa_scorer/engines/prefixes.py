"""Keys and values of what prompts begin with, computed once and kept within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KeysAndValues = list[tuple[Tensor, Tensor]]
"""For each layer keys and values [B, key heads, length, head width]; without B those of one prompt."""

Key = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids, and which images stand at their placeholders."""


@dataclass(frozen=True)
class Prefix:
    """The first tokens of prompts, the images in them, and their keys and values [key heads, length, head width] by layer.

    Images are told apart by identity: a prefix holds on to its own, so that no other can take their place.
    """

    token_ids: tuple[int, ...]
    images: tuple[Any, ...]
    cache: KeysAndValues

    @staticmethod
    def key_of(token_ids: Sequence[int], images: Sequence[Any]) -> Key:
        return tuple(token_ids), tuple(id(image) for image in images)

    @property
    def key(self) -> Key:
        return self.key_of(self.token_ids, self.images)

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for pair in self.cache for part in pair)


class PrefixCache:
    """Prefixes, the least recently used dropped first. Not safe for several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._prefixes: OrderedDict[Key, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    def get(self, key: Key) -> Prefix | None:
        if key not in self._prefixes:
            return None
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def put(self, prefix: Prefix) -> None:
        """One that is larger than the limit is not kept."""
        if prefix.key in self._prefixes or prefix.bytes > self._limit:
            return
        self._prefixes[prefix.key] = prefix
        self._held += prefix.bytes
        while self._held > self._limit:
            _, dropped = self._prefixes.popitem(last=False)
            self._held -= dropped.bytes


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def join(prefixes: Sequence[Prefix], device: torch.device, *, multiple: int = 1) -> tuple[KeysAndValues, Tensor]:
    """Keys and values of a batch, and which of them are no padding [B, length]; padded on the left to the longest, rounded up."""
    lengths = torch.tensor([len(prefix.token_ids) for prefix in prefixes], device=device)
    longest = round_up(max(len(prefix.token_ids) for prefix in prefixes), multiple)
    seen = torch.arange(longest, device=device) >= (longest - lengths)[:, None]
    joined: KeysAndValues = []
    for layer in range(len(prefixes[0].cache)):
        pair = tuple(_padded([prefix.cache[layer][part] for prefix in prefixes], longest) for part in (0, 1))
        joined.append((pair[0], pair[1]))
    return joined, seen


def _padded(parts: Sequence[Tensor], longest: int) -> Tensor:
    """[heads, length, width] each → [B, heads, longest, width]; padding is 0, for a NaN would pass through a mask."""
    first = parts[0]
    if first.shape[1] == longest and all(part is first for part in parts):
        return first.expand(len(parts), -1, -1, -1)
    whole = first.new_zeros(len(parts), first.shape[0], longest, first.shape[2])
    for row, part in enumerate(parts):
        whole[row, :, longest - part.shape[1] :] = part
    return whole
