"""float32 arithmetic of the selectors and policies in numpy, as torch does it; each works on the last axis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from leverplus.errors import InvalidEmbeddings
from leverplus.selector.config import TIE_TOLERANCE

Vector = npt.NDArray[np.float32]

_LAYER_NORM_EPSILON = 1e-5
_UNIT_EPSILON = 1e-12


def top_in_order(scores: Vector, count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` best of scores [N], best first, the lower index among equals; none that is -inf."""
    remaining = scores.copy()
    best: list[int] = []
    for _ in range(min(count, len(scores))):
        highest = remaining.max()
        if highest == -np.inf:
            break
        best.append(int(np.argmax(remaining >= highest - np.float32(TIE_TOLERANCE))))
        remaining[best[-1]] = -np.inf
    return np.asarray(best, dtype=np.int64)


def measurable(name: str, vectors: Vector) -> Vector:
    """`vectors`, or InvalidEmbeddings where the sum of their squares is not finite: their direction would be lost."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.vdot(vectors, vectors)
    if not np.isfinite(size):
        reason = "its numbers are too large for float32, or not finite; scale it to about unit length"
        raise InvalidEmbeddings(path=name, reason=reason)
    return vectors


def unit(vectors: Vector) -> Vector:
    """Scaled to length 1; a vector of zeros stays."""
    length = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))
    return vectors / np.maximum(length, np.float32(_UNIT_EPSILON))


def log_softmax(logits: Vector) -> Vector:
    """-inf stays -inf, and a row of nothing but -inf is -inf."""
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - np.where(np.isfinite(highest), highest, np.float32(0))
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(np.maximum(total, np.finfo(np.float32).tiny))


def layer_norm(vectors: Vector, weight: Vector, bias: Vector) -> Vector:
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(_LAYER_NORM_EPSILON)) * weight + bias


def sigmoid(values: Vector) -> Vector:
    """1 / (1 + exp(-x)) without overflow."""
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * values) + np.float32(1))


def gelu(values: Vector) -> Vector:
    """x · Φ(x) in its tanh approximation."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values * values * values)
    return np.float32(0.5) * values * (np.tanh(inner) + np.float32(1))
