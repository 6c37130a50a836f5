"""Choosing demonstrations without torch: the trained selectors in numpy, and the policies they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from leverplus.embeddings import Block, require_block
from leverplus.errors import InvalidConfig, InvalidPointer
from leverplus.ids import Position
from leverplus.random_order import derive_seed, random_first
from leverplus.selector.config import SelectorConfig
from leverplus.selector.numpy_autoregressive import AutoregressivePolicy
from leverplus.selector.numpy_base import Choice, PreparedCandidates, SelectorPolicy
from leverplus.selector.numpy_pointer import V3Policy
from leverplus.vectors import Vector, measurable, top_in_order, unit

__all__ = [
    "POLICY_NAMES",
    "AutoregressivePolicy",
    "Choice",
    "PreparedCandidates",
    "SelectorPolicy",
    "V3Policy",
    "fixed_positions",
    "random_positions",
    "selector_policy",
    "similar_positions",
    "zero_shot",
]

POLICY_NAMES = ("v3", "random", "similar_image", "similar_text", "similar_joint", "best_fixed", "zero_shot")
"""v3 is the trained selector, whatever its architecture."""


def selector_policy(tensors: Mapping[str, npt.NDArray[np.float32]], config: SelectorConfig) -> SelectorPolicy:
    """The selector with these tensors; InvalidCheckpoint unless they are exactly those of the configuration."""
    policy = AutoregressivePolicy if config.architecture == "autoregressive" else V3Policy
    return policy(tensors, config)


def zero_shot() -> tuple[Position, ...]:
    """No demonstration."""
    return ()


def random_positions(pool_size: int, shots: int, *, seed: int, query: int | str) -> tuple[Position, ...]:
    """Distinct positions drawn for this query: the same in every process, different for every query and seed."""
    _check_shots(shots, pool_size)
    drawn = random_first(np.arange(pool_size, dtype=np.int64), shots, derive_seed("random_positions", seed, query))
    return tuple(Position(int(position)) for position in drawn)


def similar_positions(
    query: Vector, candidates: Vector, blocks: Sequence[Block], kind: Literal["image", "text", "joint"], shots: int
) -> tuple[Position, ...]:
    """The nearest by cosine of the image block, the question block or the whole vector, the most similar last.

    query [d], candidates [K, d]. On a tie the lower position counts as the more similar.
    """
    _check_shots(shots, len(candidates))
    if not shots:
        return ()
    columns = slice(None) if kind == "joint" else require_block(blocks, {"image": "image", "text": "question"}[kind])
    similarity = unit(measurable("candidates", candidates[:, columns])) @ unit(measurable("query", query[columns]))
    nearest = top_in_order(similarity, shots)
    return tuple(Position(int(position)) for position in nearest[::-1])


def fixed_positions(pointer: Sequence[int], pool: npt.NDArray[np.int64]) -> tuple[Position, ...]:
    """Positions of a given pointer (`best_fixed`: the same for every query) in a pool; InvalidPointer if it lacks one."""
    place = {int(item_id): position for position, item_id in enumerate(pool)}
    missing = [item_id for item_id in pointer if int(item_id) not in place]
    if missing:
        raise InvalidPointer(f"pointer {list(pointer)}: items {missing} are not in the pool of {len(pool)}")
    return tuple(Position(place[int(item_id)]) for item_id in pointer)


def _check_shots(shots: int, pool_size: int) -> None:
    if not 0 <= shots <= pool_size:
        raise InvalidConfig(field="shots", reason=f"{shots}, the pool has {pool_size} candidates")
