"""How small a paired difference a sample could show, and how large a sample shows a given one.

The normal approximation of J. Cohen: Statistical Power Analysis, 1988, on the variance of images' sums.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from leverplus.evaluation.bootstrap import LEVEL, Clusters, Floats

POWER = 0.8


def standard_errors(differences: Floats, clusters: Clusters) -> Floats:
    """Of the mean over queries of each column of `differences` [n, m] → [m], with images as the independent units.

    sqrt(G / (G - 1) · Σ_images (sum - size · mean)²) / n. Needs two images.
    """
    count = len(differences)
    residuals = clusters.sums(differences - differences.mean(axis=0))
    images = len(clusters)
    return np.sqrt(images / (images - 1) * (residuals**2).sum(axis=0)) / count


def minimum_effect(standard_error: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The true difference that a two-sided test at 1 - level finds with probability `power`: (z_level + z_power) · SE."""
    return _deviations(level, power) * standard_error


def queries_needed(effect: float, standard_error: float, queries: int, *, level: float = LEVEL, power: float = POWER) -> int:
    """Queries that show a true difference of `effect` > 0, where `queries` of them left `standard_error`; two at least.

    Their number of queries an image is taken to be the same.
    """
    return max(2, math.ceil(queries * (_deviations(level, power) * standard_error / effect) ** 2))


def _deviations(level: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - (1 - level) / 2) + normal.inv_cdf(power)
