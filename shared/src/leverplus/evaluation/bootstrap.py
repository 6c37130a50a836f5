"""The cluster bootstrap: images are drawn with replacement, each with all its queries, and training seeds beside them.

Queries of one image are not independent, so the image is what is drawn (A. C. Davison, D. V. Hinkley: Bootstrap Methods and
their Application, 1997, section 3.8). A system that was trained under several seeds has these drawn too, independently of the
images: the bootstrap of crossed factors, which does not understate the variance (A. B. Owen: The pigeonhole bootstrap, Annals of
Applied Statistics, 2007). Intervals are percentiles of the draws (B. Efron, R. Tibshirani: An Introduction to the Bootstrap,
1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Clusters:
    """The image of each query: `of_query` [n] counts images from 0, `sizes` [images] are their queries."""

    of_query: NDArray[np.int64]
    sizes: Floats

    @classmethod
    def of(cls, image_ids: Sequence[str]) -> Clusters:
        _, of_query = np.unique(np.asarray(image_ids, dtype=np.str_), return_inverse=True)
        return cls(of_query.astype(np.int64), np.bincount(of_query).astype(np.float64))

    def __len__(self) -> int:
        return len(self.sizes)

    def sums(self, columns: Floats) -> Floats:
        """columns [n, m] → [images, m]: each image's sum over its queries."""
        if not columns.shape[1]:
            return np.empty((len(self), 0))
        found = [np.bincount(self.of_query, weights=column, minlength=len(self)) for column in columns.T]
        return np.stack(found, axis=1).astype(np.float64)


def resampled_sums(sums: Floats, draws: int, seed: int) -> Floats:
    """[draws, m]: sums over as many images as there are, drawn with replacement from `sums` [images, m].

    The same number of images, draws and seed draws the same images whatever the columns are.
    """
    images = len(sums)
    generator = np.random.default_rng(seed)
    found = np.empty((draws, sums.shape[1]))
    step = max(1, _CHUNK // images)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = generator.integers(images, size=(count, images), dtype=np.int32)
        times = np.stack([np.bincount(of_draw, minlength=images) for of_draw in drawn])
        found[start : start + count] = times.astype(np.float64) @ sums
    return found


def resampled_means(columns: Floats, clusters: Clusters, draws: int, seed: int) -> Floats:
    """[draws, m]: the mean over queries of each column of `columns` [n, m], in each draw of the images."""
    sums = np.concatenate([clusters.sums(columns), clusters.sizes[:, None]], axis=1)
    found = resampled_sums(sums, draws, seed)
    return found[:, :-1] / found[:, -1:]


def resampled_shares(count: int, draws: int, seed: int) -> Floats:
    """[draws, count]: the share that each of `count` training seeds has in each draw of as many, with replacement."""
    if count == 1:
        return np.ones((draws, 1))
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws) / count


def interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The central percentiles of `draws` [draws]."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
