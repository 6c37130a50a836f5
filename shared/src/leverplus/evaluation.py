"""Accuracies with intervals, and paired differences between systems: a bootstrap over images.

Questions about one image are not independent, so images are drawn (with replacement), each with all its questions: a
cluster bootstrap. Every system sees the same draws, so differences are paired. Intervals are percentiles of the draws
(B. Efron, R. Tibshirani: An Introduction to the Bootstrap, 1993, chapters 8 and 13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leverplus.errors import InvalidInput

Cell = tuple[str, int]
"""A system and its number of shots."""

LEVEL = 0.95
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Row:
    """Mean accuracy (0 to 1) of a system over `n` queries; `low`, `high`: 95 % interval, None with a single image."""

    system: str
    shots: int
    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of (system - baseline) over the same queries, -1 to 1, with its paired 95 % interval."""

    system: str
    baseline: str
    shots: int
    baseline_shots: int
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """What `summarise` found; `images` is the number of clusters that were drawn."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    images: int
    draws: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        return cls(
            rows=tuple(Row(**row) for row in value["rows"]),
            differences=tuple(Difference(**row) for row in value["differences"]),
            images=value["images"],
            draws=value["draws"],
            seed=value["seed"],
        )


def summarise(
    per_query: Mapping[Cell, NDArray[np.floating[Any]]],
    clusters: Sequence[str],
    *,
    draws: int = 10_000,
    seed: int = 0,
    baselines: Sequence[str],
) -> Evaluation:
    """Means, intervals and paired differences from each of `baselines`.

    `per_query`: (system, shots) -> accuracies in 0 to 1, [n], in the order of `clusters` (image id of each query); or
    [repeats, n] for a system that was run several times (random), whose mean over the repeats is taken per query.
    A system is compared with a baseline at the same shots; a baseline that exists at one number of shots only (zero-shot) is
    compared with every row. Of two baselines the later one is compared with the earlier. InvalidInput for NaN, values outside
    0 to 1, unequal lengths, or a baseline that is not there.
    """
    if draws < 1:
        raise InvalidInput(f"draws is {draws}, at least 1 is needed")
    cells = list(per_query)
    if not cells:
        raise InvalidInput("nothing to summarise: no system was evaluated")
    columns = np.stack([_accuracies(cell, per_query[cell], len(clusters)) for cell in cells], axis=1)
    pairs = [pair for number in range(len(baselines)) for pair in _pairs(cells, baselines[: number + 1])]
    means = columns.mean(axis=0)
    # Differences get columns of their own, so that a system that equals its baseline differs by exactly 0 in each draw.
    differences = np.stack([columns[:, a] - columns[:, b] for a, b in pairs], axis=1) if pairs else columns[:, :0]
    image_ids, image_of_query = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    low, high = _intervals(np.concatenate([columns, differences], axis=1), image_of_query, len(image_ids), draws, seed)
    rows = [
        Row(system, shots, len(clusters), float(means[index]), low[index], high[index])
        for index, (system, shots) in enumerate(cells)
    ]
    compared = [
        Difference(
            system=cells[a][0],
            baseline=cells[b][0],
            shots=cells[a][1],
            baseline_shots=cells[b][1],
            difference=float(differences[:, index].mean()),
            low=low[len(cells) + index],
            high=high[len(cells) + index],
        )
        for index, (a, b) in enumerate(pairs)
    ]
    return Evaluation(tuple(rows), tuple(compared), images=len(image_ids), draws=draws, seed=seed)


def accuracy_table(evaluation: Evaluation) -> str:
    """Markdown: a row a system, a column a number of shots; percent with the interval in brackets."""
    shots = sorted({row.shots for row in evaluation.rows})
    systems = list(dict.fromkeys(row.system for row in evaluation.rows))
    found = {(row.system, row.shots): row for row in evaluation.rows}
    lines = [_line(["system", *(_shots_title(count) for count in shots)]), _line(["---", *("---:" for _ in shots)])]
    for system in systems:
        rows = [found.get((system, count)) for count in shots]
        lines.append(_line([system, *("" if row is None else _percent(row.mean, row.low, row.high) for row in rows)]))
    return "\n".join(lines) + "\n"


def difference_table(evaluation: Evaluation) -> str:
    """Markdown: a row a comparison, in percentage points with the paired interval in brackets."""
    lines = [_line(["system", "shots", "against", "difference (points)"]), _line(["---", "---:", "---", "---:"])]
    for row in evaluation.differences:
        against = row.baseline if row.baseline_shots == row.shots else f"{row.baseline} ({_shots_title(row.baseline_shots)})"
        lines.append(_line([row.system, str(row.shots), against, _percent(row.difference, row.low, row.high, sign="+")]))
    return "\n".join(lines) + "\n"


def _accuracies(cell: Cell, values: NDArray[np.floating[Any]], count: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    name = f"{cell[0]} at {cell[1]} shots"
    if array.ndim not in (1, 2) or array.shape[-1] != count or array.size == 0:
        raise InvalidInput(f"{name}: accuracies of shape {list(array.shape)} for {count} queries; [n] or [repeats, n] is needed")
    if not (np.isfinite(array).all() and (array >= 0).all() and (array <= 1).all()):
        raise InvalidInput(
            f"{name}: every accuracy must be a number from 0 to 1; leave queries without a score out for all systems"
        )
    return array if array.ndim == 1 else array.mean(axis=0)


def _pairs(cells: Sequence[Cell], baselines: Sequence[str]) -> list[tuple[int, int]]:
    """Every system but `baselines` with the last of them."""
    baseline = baselines[-1]
    by_shots = {shots: index for index, (system, shots) in enumerate(cells) if system == baseline}
    if not by_shots:
        raise InvalidInput(f"no baseline {baseline!r}; there are: {', '.join(sorted({system for system, _ in cells}))}")
    single = next(iter(by_shots.values())) if len(by_shots) == 1 else None
    pairs = [(index, by_shots.get(shots, single)) for index, (system, shots) in enumerate(cells) if system not in baselines]
    return [(index, other) for index, other in pairs if other is not None]


def _intervals(
    columns: NDArray[np.float64], image_of_query: NDArray[np.int64], images: int, draws: int, seed: int
) -> tuple[list[float | None], list[float | None]]:
    """Percentiles of each column's mean over `draws` samples of the images; None where one image leaves nothing to draw."""
    if images < 2:
        return [None] * columns.shape[1], [None] * columns.shape[1]
    sums = np.stack([np.bincount(image_of_query, weights=column, minlength=images) for column in columns.T], axis=1)
    sizes = np.bincount(image_of_query, minlength=images).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty((draws, columns.shape[1]))
    step = max(1, _CHUNK // images)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = generator.integers(images, size=(count, images))
        drawn += np.arange(count)[:, None] * images
        times = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        means[start : start + count] = (times @ sums) / (times @ sizes)[:, None]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [float(value) for value in low], [float(value) for value in high]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shots_title(count: int) -> str:
    return "1 shot" if count == 1 else f"{count} shots"


def _percent(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    interval = "no interval" if low is None or high is None else f"{100 * low:{sign}.1f}, {100 * high:{sign}.1f}"
    return f"{100 * value:{sign}.1f} [{interval}]"
