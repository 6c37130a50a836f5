"""What an evaluation compares: for each system and number of shots, the pointers that it chooses for a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leverplus.checkpoints import CheckpointInfo
from leverplus.embeddings import Embeddings
from leverplus.evaluation import Cell
from leverplus.ids import ItemId, Pointer
from leverplus.policies import SelectorPolicy, random_positions, similar_positions
from leverplus.pools import Pools
from pointer_trainer.candidates import to_items

ZERO_SHOT, RANDOM, MOST_SIMILAR = "zero-shot", "random", "most-similar"

Choices = Mapping[Cell, tuple[Pointer, ...]]
"""One pointer a cell; several, whose accuracies are averaged, for random."""


@dataclass(frozen=True)
class Systems:
    """`selectors`: system name -> policy. `draws`: random pointers a query."""

    selectors: Mapping[str, SelectorPolicy]
    shots: Sequence[int]
    draws: int
    beam: int
    seed: int


def selector_names(infos: Sequence[CheckpointInfo]) -> list[str]:
    """Names of the checkpoints' systems: what kind of selector it is, and the checkpoint's id where there are several."""
    return [_kind(info) if len(infos) == 1 else f"{_kind(info)} {info.checkpoint_id}" for info in infos]


def _kind(info: CheckpointInfo) -> Literal["v0", "v1", "v2", "v3", "v5"]:
    """As the reference counts: a decoder, a bi-encoder, a pointer that only imitated beams, any other pointer; v5 is ours."""
    config = info.selector_config
    if config.architecture == "autoregressive":
        return "v0"
    if config.query_mlp or config.state_update == "residual":
        return "v5"
    if config.num_layers == 0:
        return "v1"
    return "v2" if info.metrics.get("phase") == "supervised" else "v3"


def choose(systems: Systems, embeddings: Embeddings, pools: Pools, query_id: ItemId) -> Choices:
    """Every cell's pointers for one query. Raises InvalidConfig for a pool with fewer items than shots."""
    pool = pools.pool(query_id)
    vectors = embeddings.candidate[embeddings.require(pool)]
    query = embeddings.query[embeddings.require([query_id])[0]]
    prepared = {name: policy.prepare(vectors) for name, policy in systems.selectors.items()}
    chosen: dict[Cell, tuple[Pointer, ...]] = {}
    for shots in sorted(systems.shots):
        if shots == 0:
            chosen[ZERO_SHOT, 0] = ((),)
            continue
        draws = [
            random_positions(len(pool), shots, seed=systems.seed, query=f"{query_id}, draw {draw}")
            for draw in range(systems.draws)
        ]
        chosen[RANDOM, shots] = tuple(to_items(pool, positions) for positions in draws)
        similar = similar_positions(query, vectors, embeddings.manifest.blocks, "joint", shots)
        chosen[MOST_SIMILAR, shots] = (to_items(pool, similar),)
        for name, policy in systems.selectors.items():
            choice = policy.choose(query, prepared[name], shots, systems.beam)
            chosen[name, shots] = (to_items(pool, choice.positions),)
    return chosen


def accuracies(choices: Choices, scores: Mapping[Pointer, float | None]) -> dict[Cell, float] | None:
    """Mean accuracy of each cell's pointers for one query; None where one of them has no score."""
    found: dict[Cell, float] = {}
    for cell, pointers in choices.items():
        known = [score for pointer in pointers if (score := scores[pointer]) is not None]
        if len(known) < len(pointers):
            return None
        found[cell] = float(np.mean(known))
    return found
