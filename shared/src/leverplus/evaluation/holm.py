"""Holm's step-down correction for several comparisons (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p, in the order given: at most as many as α of all true hypotheses' families have one below α, whatever the
    dependence. The i-th smallest of m is multiplied by m - i + 1, none gets below one before it or above 1."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(_ascending(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which each is to be judged, in the order given: alpha / m for the smallest p, alpha for the largest."""
    levels = [0.0] * len(p_values)
    for rank, index in enumerate(_ascending(p_values)):
        levels[index] = alpha / (len(p_values) - rank)
    return levels


def _ascending(p_values: Sequence[float]) -> list[int]:
    return sorted(range(len(p_values)), key=lambda index: p_values[index])
