"""What an evaluation compares: for each system and number of shots, the pointers that it chooses for a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from leverplus.checkpoints import CheckpointInfo
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.fingerprint import digest
from leverplus.ids import ItemId, Pointer
from leverplus.policies import SelectorPolicy, random_positions, similar_positions
from leverplus.pools import Pools
from pointer_trainer.candidates import to_items
from pointer_trainer.requests import BaselineName

ZERO_SHOT, RANDOM, BEST_FIXED = "zero-shot", "random", "best-fixed"
SIMILAR: Mapping[str, Literal["image", "text", "joint"]] = {
    "similar-image": "image",
    "similar-text": "text",
    "similar-joint": "joint",
}
_BLOCKS = {"similar-image": "image", "similar-text": "question"}

FixedPointers = Mapping[int, Sequence[Sequence[int]]]
"""By number of shots, the pointers that did best whatever the query, best first."""


class Contender(NamedTuple):
    """A row of an evaluation before its seeds are put together: `checkpoint` is None for a baseline."""

    system: str
    checkpoint: str | None
    shots: int


Choices = Mapping[Contender, tuple[Pointer, ...]]
"""One pointer each; several, whose accuracies are averaged, for random; none where a query is offered no fixed pointer."""


class Unavailable(NamedTuple):
    """A baseline that could not be evaluated; `shots` is None where it is at none."""

    system: str
    shots: int | None
    reason: str


@dataclass(frozen=True)
class Selector:
    """`system`: the name of the system that the checkpoint is a seed of."""

    checkpoint: str
    system: str
    policy: SelectorPolicy


@dataclass(frozen=True)
class Systems:
    """`draws`: random pointers a query."""

    baselines: Sequence[BaselineName]
    selectors: Sequence[Selector]
    fixed: FixedPointers
    shots: Sequence[int]
    draws: int
    beam: int
    seed: int


def system_names(infos: Sequence[CheckpointInfo]) -> list[str]:
    """The system of each checkpoint: what kind of selector it is, and the first checkpoint's id where there are several systems.

    Checkpoints that were trained alike on the same data but for the seed are one system.
    """
    keys = [_trained_alike(info) for info in infos]
    first = dict(reversed(list(zip(keys, infos, strict=True))))
    names: dict[str, str] = {}
    for key, info in first.items():
        seeds = keys.count(key)
        alone = _kind(info) if len(first) == 1 else f"{_kind(info)} {info.checkpoint_id}"
        names[key] = alone if seeds == 1 else f"{alone} ({seeds} seeds)"
    return [names[key] for key in keys]


def _trained_alike(info: CheckpointInfo) -> str:
    """Equal for checkpoints that differ in their training seed alone; one that states none is like no other."""
    if "seed" not in info.training:
        return info.checkpoint_id
    training = {name: value for name, value in info.training.items() if name != "seed"}
    made_of = [info.selector, training, info.rl_data, info.shots, info.metrics.get("phase"), info.fingerprint.to_json()]
    return digest(made_of)


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


def fixed_pointers(infos: Sequence[CheckpointInfo]) -> FixedPointers:
    """For each number of shots those of the first checkpoint that ranks some."""
    found: dict[int, Sequence[Sequence[int]]] = {}
    for info in infos:
        for shots, ranking in info.best_fixed.items():
            if ranking:
                found.setdefault(int(shots), ranking)
    return found


def available(
    asked: Sequence[BaselineName], shots: Sequence[int], fixed: FixedPointers, embeddings: Embeddings
) -> tuple[list[BaselineName], list[Unavailable]]:
    """The baselines that there can be, and why others are missing."""
    blocks = {block.name for block in embeddings.manifest.blocks}
    numbers = [count for count in sorted(shots) if count]
    missing: list[Unavailable] = []
    for name in asked:
        if name == ZERO_SHOT and 0 not in shots:
            missing.append(Unavailable(name, None, "0 is not among the numbers of shots"))
        elif name != ZERO_SHOT and not numbers:
            missing.append(Unavailable(name, None, "no number of shots above 0 was asked for"))
        elif name in _BLOCKS and _BLOCKS[name] not in blocks:
            there = ", ".join(sorted(blocks)) or "none"
            missing.append(Unavailable(name, None, f"the embeddings have no block {_BLOCKS[name]!r}, only {there}"))
        elif name == BEST_FIXED:
            lacking = [count for count in numbers if count not in fixed]
            reason = "no checkpoint here ranks fixed pointers of that length"
            missing += [Unavailable(name, None if lacking == numbers else count, reason) for count in lacking]
    gone = {one.system for one in missing if one.shots is None}
    return [name for name in asked if name not in gone], list(dict.fromkeys(missing))


def choose(systems: Systems, embeddings: Embeddings, pools: Pools, query_id: ItemId) -> Choices:
    """Every contender's pointers for one query. Raises InvalidConfig for a pool with fewer items than shots."""
    pool = pools.pool(query_id)
    vectors = embeddings.candidate[embeddings.require(pool)]
    query = embeddings.query[embeddings.require([query_id])[0]]
    prepared = [selector.policy.prepare(vectors) for selector in systems.selectors]
    chosen: dict[Contender, tuple[Pointer, ...]] = {}
    for shots in sorted(systems.shots):
        if shots == 0:
            if ZERO_SHOT in systems.baselines:
                chosen[Contender(ZERO_SHOT, None, 0)] = ((),)
            continue
        for name in systems.baselines:
            if name == RANDOM:
                drawn = (
                    random_positions(len(pool), shots, seed=systems.seed, query=f"{query_id}, draw {draw}")
                    for draw in range(systems.draws)
                )
                chosen[Contender(name, None, shots)] = tuple(to_items(pool, positions) for positions in drawn)
            elif name == BEST_FIXED and shots in systems.fixed:
                chosen[Contender(name, None, shots)] = _fixed(systems.fixed[shots], pools.dataset, query_id)
            elif name in SIMILAR:
                similar = similar_positions(query, vectors, embeddings.manifest.blocks, SIMILAR[name], shots)
                chosen[Contender(name, None, shots)] = (to_items(pool, similar),)
        for selector, candidates in zip(systems.selectors, prepared, strict=True):
            choice = selector.policy.choose(query, candidates, shots, systems.beam)
            chosen[Contender(selector.system, selector.checkpoint, shots)] = (to_items(pool, choice.positions),)
    return chosen


def _fixed(ranking: Sequence[Sequence[int]], dataset: Dataset, query_id: ItemId) -> tuple[Pointer, ...]:
    """The best pointer that does not show the query's own image, as it would be served."""
    own = dataset.item(query_id).image_id
    for pointer in ranking:
        if all(dataset.item(ItemId(item_id)).image_id != own for item_id in pointer):
            return (tuple(ItemId(item_id) for item_id in pointer),)
    return ()
