"""float32 arithmetic of the selectors and policies in numpy, as torch does it; each works on the last axis."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from leverplus.errors import InvalidEmbeddings
from leverplus.selector.config import TIE_TOLERANCE

Vector = npt.NDArray[np.float32]

_LAYER_NORM_EPSILON = 1e-5
_UNIT_EPSILON = 1e-12
_SORTED_WHOLE = 256


def top_in_order(scores: Vector, count: int) -> npt.NDArray[np.int64]:
    """Indices [..., count] of the `count` best of scores [..., N], best first, the lower index among equals.

    Where fewer than `count` are above -inf, the last ones mean nothing.
    """
    remaining = scores.reshape(-1, scores.shape[-1])
    if (apart := _clearly_apart(remaining, count)) is not None:
        return apart.reshape(*scores.shape[:-1], count)
    remaining = remaining.copy()
    row = np.arange(len(remaining))
    best = np.empty((len(remaining), count), dtype=np.int64)
    for step in range(count):
        edge = remaining.max(axis=1, keepdims=True) - np.float32(TIE_TOLERANCE)
        best[:, step] = index = (remaining >= edge).argmax(axis=1)
        if step + 1 < count:
            remaining[row, index] = -np.inf
    return best.reshape(*scores.shape[:-1], count)


def _clearly_apart(scores: Vector, count: int) -> npt.NDArray[np.int64] | None:
    """The `count` best of each row of scores [R, N] by plain sorting, None where ties have to be looked at."""
    rows, size = scores.shape
    # Flat positions: `take` costs half of indexing by row and column, and a small pool is nothing but calls.
    starts = np.arange(0, rows * size, size)[:, None]
    if size <= _SORTED_WHOLE:
        best = scores.argsort(axis=1)[:, : -count - 2 : -1]
    else:
        largest = scores.argpartition(size - count - 1, axis=1)[:, size - count - 1 :]
        order = scores.take(largest + starts).argsort(axis=1)[:, ::-1]
        best = largest.take(order + np.arange(0, rows * (count + 1), count + 1)[:, None])
    values = scores.take(best + starts)
    # The difference of two infinities is no number, and none is no distance.
    if not np.minimum.reduce(values[:, :-1] - values[:, 1:], axis=None, initial=np.inf) > 2 * TIE_TOLERANCE:
        return None
    return best[:, :count]


def measurable(name: str, vectors: Vector) -> Vector:
    """`vectors`, or InvalidEmbeddings where the sum of their squares is not finite: their direction would be lost."""
    if not math.isfinite(np.vdot(vectors, vectors)):
        reason = "its numbers are too large for float32, or not finite; scale it to about unit length"
        raise InvalidEmbeddings(path=name, reason=reason)
    return vectors


def norm(vectors: Vector) -> Vector:
    """Lengths [...] of [..., n], at least a little above 0 so that they can divide."""
    return np.maximum(np.sqrt(np.vecdot(vectors, vectors)), np.float32(_UNIT_EPSILON))


def unit(vectors: Vector) -> Vector:
    """Scaled to length 1; a vector of zeros stays."""
    return vectors / norm(vectors)[..., None]


def softmax(logits: Vector) -> Vector:
    """Every row has a number above -inf."""
    weights = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= np.add.reduce(weights, axis=-1, keepdims=True)
    return weights


def log_softmax(logits: Vector) -> Vector:
    """-inf stays -inf, and a row of nothing but -inf is -inf."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - np.where(np.isfinite(highest), highest, np.float32(0))
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(np.maximum(total, np.finfo(np.float32).tiny))


def layer_norm(vectors: Vector, weight: Vector, bias: Vector) -> Vector:
    # ndarray.mean takes four times as long as a sum where there are few numbers.
    size = np.float32(vectors.shape[-1])
    centred = vectors - np.add.reduce(vectors, axis=-1, keepdims=True) / size
    deviation = np.sqrt(np.vecdot(centred, centred) / size + np.float32(_LAYER_NORM_EPSILON))
    centred /= deviation[..., None]
    centred *= weight
    centred += bias
    return centred


def sigmoid(values: Vector) -> Vector:
    """1 / (1 + exp(-x)) without overflow."""
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * values) + np.float32(1))


def gelu(values: Vector) -> Vector:
    """x · Φ(x) in its tanh approximation."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values * values * values)
    return np.float32(0.5) * values * (np.tanh(inner) + np.float32(1))
