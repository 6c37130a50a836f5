"""The promotion gate: is a checkpoint better than every baseline, and than what is served now, beyond what chance explains?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from leverplus.errors import InvalidInput
from leverplus.evaluation.bootstrap import LEVEL, Clusters, Floats, resampled_means
from leverplus.evaluation.holm import holm_levels
from leverplus.evaluation.tables import shots_title

ALPHA = (1 - LEVEL) / 2
"""One-sided: a lower bound above 0 is that of a 95 % interval."""


@dataclass(frozen=True)
class GateComparison:
    """The paired gain over one baseline at one number of shots.

    `p`: share of the bootstrap's draws without a gain. `level`: the share that Holm leaves it, over the baselines at these shots.
    `low`: the gain's lower bound at that level; `passed` if it is above 0.
    """

    shots: int
    baseline: str
    baseline_shots: int
    difference: float
    p: float
    level: float
    low: float
    passed: bool


@dataclass(frozen=True)
class Gate:
    """`passed` if every comparison is."""

    passed: bool
    comparisons: tuple[GateComparison, ...]
    queries: int
    images: int
    draws: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "comparisons": [asdict(one) for one in self.comparisons]}

    @property
    def refusals(self) -> list[str]:
        """A line for each comparison that did not pass."""
        return [
            f"at {shots_title(one.shots)} its gain over {one.baseline} is {100 * one.difference:+.1f} points, lower bound "
            f"{100 * one.low:+.1f} (level {100 * one.level:.2f} %)"
            for one in self.comparisons
            if not one.passed
        ]


def run_gate(
    checkpoint: Mapping[int, Floats],
    baselines: Mapping[str, Mapping[int, Floats]],
    image_ids: Sequence[str],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Gate:
    """Compares on the same queries, at each number of shots of `checkpoint`, with every baseline.

    Accuracies are [n] in the order of `image_ids`, by number of shots. A baseline that has no such number of shots stands with
    the one that it has (zero-shot). Holm is over the baselines at one number of shots; every number of shots must pass.
    InvalidInput for fewer than two images, where nothing is compared at some number of shots, or where the images are so few that
    a gain on each of them is more likely by chance than Holm's strictest level: a bootstrap draws only what was seen.
    """
    images = Clusters.of(image_ids)
    if len(images) < 2:
        raise InvalidInput(f"{len(images)} image says nothing about others; evaluate on more queries")
    comparisons: list[GateComparison] = []
    for shots, accuracies in sorted(checkpoint.items()):
        there = {name: found for name, found in baselines.items() if shots in found or len(found) == 1}
        against = [(name, *_at(found, shots)) for name, found in there.items()]
        if not against:
            raise InvalidInput(f"no baseline was evaluated at {shots} shots: evaluate with some")
        if 0.5 ** len(images) > ALPHA / len(against):
            comparisons_made = f"{len(against)} comparison{'s' if len(against) > 1 else ''}"
            raise InvalidInput(
                f"{len(images)} images are too few to judge {comparisons_made} at {100 * ALPHA:.1f} %: chance alone gains on all "
                f"of them once in {2 ** len(images)}; evaluate on more queries"
            )
        gains = np.stack([accuracies - values for _, _, values in against], axis=1)
        drawn = resampled_means(gains, images, draws, seed)
        p_values = [float(p) for p in (1 + (drawn <= 0).sum(axis=0)) / (1 + draws)]
        levels = holm_levels(p_values, ALPHA)
        for index, (name, baseline_shots, _) in enumerate(against):
            low = float(np.quantile(drawn[:, index], levels[index]))
            found = (float(gains[:, index].mean()), p_values[index], levels[index], low, low > 0)
            comparisons.append(GateComparison(shots, name, baseline_shots, *found))
    passed = bool(comparisons) and all(one.passed for one in comparisons)
    return Gate(passed, tuple(comparisons), len(image_ids), len(images), draws, seed)


def _at(by_shots: Mapping[int, Floats], shots: int) -> tuple[int, Floats]:
    found = shots if shots in by_shots else next(iter(by_shots))
    return found, by_shots[found]
