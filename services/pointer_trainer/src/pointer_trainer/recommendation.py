"""Which phase's checkpoint a run recommends: a later one only where the held-out queries show that it is better.

Two means over the same few queries differ by chance, too. What decides is the paired gain: each group (query, shots) under both
phases, its mean with a bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leverplus.evaluation.bootstrap import Clusters, interval, resampled_means
from leverplus.ids import ItemId
from pointer_trainer.held_out import HeldOut
from pointer_trainer.train_config import TrainConfig

DRAWS = 10_000
_SEED = 0
_MEASURES = {"expected_reward": ("held_out_expected_reward", 1.0), "loss": ("held_out_rce", -1.0)}
"""By `keep_epoch`: a column of metrics.jsonl, and its sign where more of it is better."""


@dataclass(frozen=True)
class Standing:
    """The best epoch of a phase. `mean`: its measure over the groups of the held-out queries.

    `gain`: how much better it is than `over`, the phase that was recommended before it, paired by group; of a loss how much
    lower. `low`, `high`: the gain's 95 % interval, None where all queries are of one image. All four are None for the first
    phase. `taken`: whether it was recommended then, which a later phase needs `low` above 0 for.
    """

    mean: float
    taken: bool
    over: str | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """`phase` is the last one that was taken, `reason` says why in a sentence. `measure`: the column of metrics.jsonl that was
    compared. `queries`, `images`: those held out. `phases`: in the order in which they were run."""

    phase: str
    measure: str
    queries: int
    images: int
    phases: Mapping[str, Standing]
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def worth(row: Mapping[str, Any], config: TrainConfig) -> float:
    """What an epoch is kept for: the larger the better."""
    measure, sign = _MEASURES[config.keep_epoch]
    return sign * row[measure]


def recommend(judged: Mapping[str, HeldOut], image_ids: Mapping[ItemId, str], config: TrainConfig) -> Recommendation:
    """`judged`: phase -> its best epoch on the same groups in the same order, at least one, in the order of the run."""
    measure, sign = _MEASURES[config.keep_epoch]
    query_ids = [ItemId(int(one)) for one in next(iter(judged.values())).query_ids]
    images = Clusters.of([image_ids[query_id] for query_id in query_ids])
    standings: dict[str, Standing] = {}
    best: str | None = None
    for phase, found in judged.items():
        mean = float(found.values[measure].mean())
        if best is None:
            standings[phase] = Standing(mean, taken=True)
        else:
            gains = sign * (found.values[measure] - judged[best].values[measure])
            low, high = _interval(gains, images)
            standings[phase] = Standing(mean, low is not None and low > 0, best, float(gains.mean()), low, high)
        best = phase if standings[phase].taken else best
    assert best is not None
    queries = len(set(query_ids))
    reason = _reason(standings, f"{measure}, paired, {queries} held-out queries of {len(images)} images")
    return Recommendation(best, measure, queries, len(images), standings, reason)


def _interval(gains: NDArray[np.float64], images: Clusters) -> tuple[float, float] | tuple[None, None]:
    """Of the mean of `gains` [groups]."""
    if len(images) < 2:
        return None, None
    return interval(resampled_means(gains[:, None], images, DRAWS, _SEED)[:, 0])


def _reason(standings: Mapping[str, Standing], by: str) -> str:
    compared = [_told(phase, one) for phase, one in standings.items() if one.over is not None]
    if not compared:
        return f"{next(iter(standings))} has no other phase beside it"
    return f"{'; '.join(compared)} ({by})"


def _told(phase: str, one: Standing) -> str:
    bounds = "no interval" if one.low is None else f"{one.low:+.4f}, {one.high:+.4f}"
    return f"{phase} gains {one.gain:+.4f} [{bounds}] over {one.over}, {'' if one.taken else 'not shown to be '}above 0"
