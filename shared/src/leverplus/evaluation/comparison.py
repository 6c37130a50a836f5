"""Accuracies with intervals and paired differences between systems, each with what the sample could have shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leverplus.errors import InvalidInput
from leverplus.evaluation.bootstrap import Clusters, Floats, interval, resampled_means, resampled_shares
from leverplus.evaluation.holm import holm
from leverplus.evaluation.minimum_effect import minimum_effect
from leverplus.evaluation.permutation import sign_flip_p
from leverplus.random_order import derive_seed

Cell = tuple[str, int]
"""A system and its number of shots."""


@dataclass(frozen=True)
class Row:
    """Mean accuracy (0 to 1) of a system over `n` queries; `low`, `high`: 95 % interval, None with a single image.

    `seeds`: how many training seeds the system has; they are drawn with the images.
    """

    system: str
    shots: int
    n: int
    mean: float
    low: float | None
    high: float | None
    seeds: int = 1


@dataclass(frozen=True)
class Difference:
    """Mean of (system - baseline) over the same queries, -1 to 1, with its paired 95 % interval.

    `p`: two-sided, of the permutation test over images, given the training seeds. `p_holm`: after Holm, over all comparisons of
    the evaluation. `minimum_effect`: the true difference that so many queries find with probability 0.8 at the 5 % level. None
    with a single image; the last also where all queries differ alike or none does, which leaves no variance to estimate.
    """

    system: str
    baseline: str
    shots: int
    baseline_shots: int
    difference: float
    low: float | None
    high: float | None
    p: float | None = None
    p_holm: float | None = None
    minimum_effect: float | None = None


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


@dataclass(frozen=True)
class _Columns:
    """Accuracies of all cells [n, m]; a cell's columns are its training seeds, or one."""

    values: Floats
    of_cell: Sequence[slice]

    def of(self, cell: int) -> Floats:
        return self.values[:, self.of_cell[cell]]


def summarise(
    per_query: Mapping[Cell, NDArray[np.floating[Any]]],
    clusters: Sequence[str],
    *,
    draws: int = 10_000,
    seed: int = 0,
    baselines: Sequence[str],
    seeded: Collection[str] = (),
    learned: Collection[str] | None = None,
) -> Evaluation:
    """Means, intervals and paired differences from each of `baselines`.

    `per_query`: (system, shots) -> accuracies in 0 to 1, [n], in the order of `clusters` (image id of each query); or
    [repeats, n]. Repeats of a system in `seeded` are training seeds, which are drawn with the images; those of another
    (random) are averaged per query. A system is compared with a baseline at the same shots; a baseline that exists at one number
    of shots only (zero-shot) is compared with every row. Of two baselines the later one is compared with the earlier.
    With `learned` only those systems are compared with baselines.
    InvalidInput for NaN, values outside 0 to 1, unequal lengths, or a baseline that is not there.
    """
    if draws < 1:
        raise InvalidInput(f"draws is {draws}, at least 1 is needed")
    cells = list(per_query)
    if not cells:
        raise InvalidInput("nothing to summarise: no system was evaluated")
    columns = _columns([_accuracies(cell, per_query[cell], len(clusters), cell[0] in seeded) for cell in cells])
    pairs = [pair for number in range(len(baselines)) for pair in _pairs(cells, baselines[: number + 1])]
    pairs = [pair for pair in pairs if learned is None or cells[pair[0]][0] in learned]
    images = Clusters.of(clusters)
    # Differences get columns of their own, so that a system that equals its baseline differs by exactly 0 in each draw.
    differences = _columns([_crossed(columns.of(a), columns.of(b)) for a, b in pairs])
    rows: list[Row] = []
    compared: list[Difference] = []
    means = [differences.of(index).mean(axis=1) for index in range(len(pairs))]
    drawn = _drawn(cells, pairs, columns, differences, images, draws, seed) if len(images) > 1 else None
    for index, (system, shots) in enumerate(cells):
        values = columns.of(index)
        bounds = (None, None) if drawn is None else interval(drawn[index])
        rows.append(Row(system, shots, len(clusters), float(values.mean()), *bounds, values.shape[1]))
    p_values = [] if drawn is None or not pairs else sign_flip_p(np.stack(means, axis=1), images, draws, seed).tolist()
    corrected = holm(p_values)
    for index, pair in enumerate(pairs):
        named = (*_names(cells, pair), float(means[index].mean()))
        if drawn is None:
            compared.append(Difference(*named, None, None))
        else:
            of_pair = drawn[len(cells) + index]
            # Rounding alone tells draws apart where all queries differ alike.
            effect = minimum_effect(float(of_pair.std())) if np.ptp(of_pair) > 1e-12 else None
            compared.append(Difference(*named, *interval(of_pair), p_values[index], corrected[index], effect))
    return Evaluation(tuple(rows), tuple(compared), images=len(images), draws=draws, seed=seed)


def _accuracies(cell: Cell, values: NDArray[np.floating[Any]], count: int, is_seeded: bool) -> Floats:
    """[n, seeds], one column where repeats are no seeds."""
    array = np.asarray(values, dtype=np.float64)
    name = f"{cell[0]} at {cell[1]} shots"
    if array.ndim not in (1, 2) or array.shape[-1] != count or array.size == 0:
        raise InvalidInput(f"{name}: accuracies of shape {list(array.shape)} for {count} queries; [n] or [repeats, n] is needed")
    if not (np.isfinite(array).all() and (array >= 0).all() and (array <= 1).all()):
        raise InvalidInput(
            f"{name}: every accuracy must be a number from 0 to 1; leave queries without a score out for all systems"
        )
    if array.ndim == 2 and is_seeded:
        return array.T
    return (array if array.ndim == 1 else array.mean(axis=0))[:, None]


def _columns(parts: Sequence[Floats]) -> _Columns:
    ends = np.cumsum([part.shape[1] for part in parts]).tolist()
    of_cell = [slice(end - part.shape[1], end) for part, end in zip(parts, ends, strict=True)]
    return _Columns(np.concatenate(parts, axis=1) if parts else np.empty((0, 0)), of_cell)


def _crossed(system: Floats, baseline: Floats) -> Floats:
    """[n, S], [n, T] → [n, S·T]: each seed of the one less each of the other."""
    return (system[:, :, None] - baseline[:, None, :]).reshape(len(system), -1)


def _pairs(cells: Sequence[Cell], baselines: Sequence[str]) -> list[tuple[int, int]]:
    """Every system but `baselines` with the last of them."""
    baseline = baselines[-1]
    by_shots = {shots: index for index, (system, shots) in enumerate(cells) if system == baseline}
    if not by_shots:
        raise InvalidInput(f"no baseline {baseline!r}; there are: {', '.join(sorted({system for system, _ in cells}))}")
    single = next(iter(by_shots.values())) if len(by_shots) == 1 else None
    pairs = [(index, by_shots.get(shots, single)) for index, (system, shots) in enumerate(cells) if system not in baselines]
    return [(index, other) for index, other in pairs if other is not None]


def _names(cells: Sequence[Cell], pair: tuple[int, int]) -> tuple[str, str, int, int]:
    (system, shots), (baseline, baseline_shots) = cells[pair[0]], cells[pair[1]]
    return system, baseline, shots, baseline_shots


def _drawn(
    cells: Sequence[Cell],
    pairs: Sequence[tuple[int, int]],
    columns: _Columns,
    differences: _Columns,
    images: Clusters,
    draws: int,
    seed: int,
) -> list[Floats]:
    """Each cell's mean, then each pair's difference, in every draw of images and training seeds."""
    parts = [columns.values, *([differences.values] if pairs else [])]
    found = resampled_means(np.concatenate(parts, axis=1), images, draws, seed)
    of_cells, of_pairs = found[:, : columns.values.shape[1]], found[:, columns.values.shape[1] :]

    def shares(cell: int) -> Floats:
        # A system's seeds are the same draws at every number of shots.
        count = columns.of(cell).shape[1]
        return resampled_shares(count, draws, derive_seed("training seeds", seed, cells[cell][0]) % 2**32)

    drawn = [(of_cells[:, columns.of_cell[cell]] * shares(cell)).sum(axis=1) for cell in range(len(cells))]
    for index, (a, b) in enumerate(pairs):
        weights = (shares(a)[:, :, None] * shares(b)[:, None, :]).reshape(draws, -1)
        drawn.append((of_pairs[:, differences.of_cell[index]] * weights).sum(axis=1))
    return drawn
