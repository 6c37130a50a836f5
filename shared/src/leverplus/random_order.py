"""Random orders that are the same on every machine and in every version of numpy.

numpy does not promise the same stream from a seed for ever, and a pool must be the same when it is served as when it
was trained on. So ids are ordered by a keyed hash of their own: the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014), which is a bijection, so that two ids never tie.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

LeftOut = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
"""Indices [m] of ids -> which of them do not count."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_seed(*parts: int | str | bytes) -> int:
    """64-bit seed: the first eight bytes of a sha256 over the parts, each with its type and length."""
    state = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        state.update(f"{type(part).__name__}:{len(data)}:".encode())
        state.update(data)
    return int.from_bytes(state.digest()[:8], "big")


def random_keys(ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.uint64]:
    """One key an id; sorting by it is a random order of the ids. ids [n] non-negative → keys [n]."""
    return _finished(_mixed(_spread(ids), seed))


def random_first(ids: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """The first `count` of `ids` in a random order: drawn without replacement, whatever order they came in."""
    return RandomOrder(ids).first(count, seed)


class RandomOrder:
    """Random orders of the same ids [n] under one seed after the other; the part that no seed changes is made once."""

    def __init__(self, ids: npt.NDArray[np.int64]) -> None:
        self._ids = ids
        self._spread = _spread(ids)

    def first(self, count: int, seed: int, left_out: LeftOut | None = None) -> npt.NDArray[np.int64]:
        """The first `count` of those that are not left out, fewer where there are not so many."""
        if not count:
            return self._ids[:0]
        mixed = _mixed(self._spread, seed)
        # Of n keys spread over [0, 2^64) the first ones lie below this: far fewer are left to be finished, looked at and sorted.
        # What finishing leaves alone are the upper 31 bits, so those are compared.
        likely = (count + 10 * math.sqrt(count) + 10) / max(1, len(mixed))
        few = likely < 0.5
        rows = np.flatnonzero(mixed < np.uint64((int(likely * 2**31) + 1) << 33)) if few else np.arange(len(mixed))
        if left_out is not None:
            rows = rows[~left_out(rows)]
        if len(rows) < count and few:
            rows = np.arange(len(mixed))
            if left_out is not None:
                rows = rows[~left_out(rows)]
        return self._ids[rows[np.argsort(_finished(mixed[rows]))[:count]]]


def _spread(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN


def _mixed(spread: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    z = spread + np.uint64(seed % 2**64)
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= _MIX_1
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= _MIX_2
    return z


def _finished(mixed: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return mixed ^ (mixed >> np.uint64(31))
