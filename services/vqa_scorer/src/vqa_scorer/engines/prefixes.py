"""Keys and values of what prompts begin with: computed once, kept within a bound, shared by the prompts that go on from them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]
Key = tuple[bytes, tuple["ImageShape", ...]]
"""Token ids, and which images stand at their placeholders."""


@dataclass(frozen=True)
class ImageShape:
    """What tells an image from others, and the rows and columns of its tokens."""

    identity: Hashable
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Places in the prompt."""
        return self.rows * self.columns


Features = Mapping[ImageShape, Tensor]
"""Images after the vision tower: values [tokens, hidden] of each."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids [L] with one placeholder a visual token, their positions [3, L], the images and where each begins."""

    token_ids: Ids
    positions: Ids
    images: tuple[ImageShape, ...]
    image_starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    def key(self, length: int) -> Key:
        """Of what stands before `length`, where an image may begin but none is cut."""
        inside = sum(start < length for start in self.image_starts)
        return self.token_ids[:length].tobytes(), self.images[:inside]


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first `length` tokens of prompts. `cache` [layers, own, 2, key heads, width] holds the keys and values of those behind
    `parent`; the parent's are not repeated."""

    key: Key
    length: int
    parent: Prefix | None
    cache: Tensor

    @property
    def own(self) -> int:
        return self.cache.shape[1]

    @property
    def bytes(self) -> int:
        return self.cache.numel() * self.cache.element_size()

    def chain(self) -> list[Prefix]:
        """From the first tokens on: what comes before this one, and itself."""
        before = self.parent.chain() if self.parent is not None else []
        return [*before, self]


@dataclass(frozen=True, eq=False)
class Part:
    """What one pass reads of a prompt: the tokens from the end of `parent` up to `stop`."""

    prompt: EncodedPrompt
    parent: Prefix
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.parent.length

    @property
    def key(self) -> Key:
        return self.prompt.key(self.stop)


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

    def clear(self) -> None:
        self._prefixes.clear()
        self._held = 0


def runs(parts: Sequence[Part], tokens: int) -> Iterator[Sequence[Part]]:
    """`parts` in order, cut into runs of at most so many tokens; one that has more is a run of its own."""
    start = total = 0
    for index, part in enumerate(parts):
        if index > start and total + part.length > tokens:
            yield parts[start:index]
            start, total = index, 0
        total += part.length
    if parts:
        yield parts[start:]


def shared_cuts(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Where each prompt is cut so that what several begin with is read once: before its second image always, for the first
    demonstration serves later batches too, and before each further image up to which another prompt of these is the same."""
    counts = Counter(prompt.key(start) for prompt in prompts for start in prompt.image_starts[2:])
    return [
        [start for depth, start in enumerate(prompt.image_starts[1:]) if depth == 0 or counts[prompt.key(start)] > 1]
        for prompt in prompts
    ]


@dataclass(frozen=True)
class Layout:
    """How the keys of parts lie in memory: the caches of `prefixes`, each once, then the parts' own rows.

    `order` [K] packs them by part: what comes before it, then its own; `lengths` are its keys by part. `rows` lie there in all.
    """

    prefixes: list[Prefix]
    rows: int
    order: Ids
    lengths: list[int]

    @staticmethod
    def of(parts: Sequence[Part]) -> Layout:
        starts: dict[int, int] = {}
        prefixes: list[Prefix] = []
        rows = 0
        for prefix in _distinct(parts):
            starts[id(prefix)] = rows
            prefixes.append(prefix)
            rows += prefix.own
        chains = {id(part.parent): part.parent.chain() for part in parts}
        known = {
            parent: np.concatenate([np.arange(starts[id(one)], starts[id(one)] + one.own) for one in chain])
            for parent, chain in chains.items()
        }
        pieces: list[Ids] = []
        for part in parts:
            pieces += [known[id(part.parent)], np.arange(rows, rows + part.length)]
            rows += part.length
        return Layout(prefixes, rows, np.concatenate(pieces), [part.stop for part in parts])

    def places(self) -> Ids:
        """[parts, longest]: where each key of a part lies, 0 behind its end"""
        found = np.zeros((len(self.lengths), max(self.lengths)), dtype=np.int64)
        begin = 0
        for row, length in enumerate(self.lengths):
            found[row, :length] = self.order[begin : begin + length]
            begin += length
        return found

    def caches(self) -> Tensor:
        """[layers, rows, 2, key heads, width] of the prefixes"""
        return torch.cat([prefix.cache for prefix in self.prefixes], dim=1)


def _distinct(parts: Sequence[Part]) -> Iterator[Prefix]:
    seen: set[int] = set()
    for part in parts:
        for prefix in part.parent.chain():
            if id(prefix) not in seen:
                seen.add(id(prefix))
                yield prefix
