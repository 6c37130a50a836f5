"""Whether a selector makes anything of the query: how often its choice is the same, and whether another query changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from leverplus.checkpoints import CheckpointInfo, Tensors
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidCheckpoint, InvalidConfig, LeverPlusError
from leverplus.fingerprint import Fingerprint
from leverplus.ids import MAX_SHOTS, ItemId
from leverplus.policies import selector_policy
from leverplus.pools import Ids, PoolPolicy, Pools, Vector
from leverplus.random_order import derive_seed, random_first

Choose = Callable[[Vector, Ids], Sequence[int]]
"""(a query's vector [d], item ids of a pool [K]) → the chosen items, in prompt order."""

QUERIES = 200
_FEWEST_QUERIES = 20
_CANDIDATES_READ = 4_000_000
"""A pool costs time by its size: fewer queries are taken where pools are large."""

LEAST_CHANGED = 0.05
MOST_ALIKE = 0.5


@dataclass(frozen=True)
class SelectorHealth:
    """`queries` of `split` with `shots` demonstrations each, every one from its own pool.

    `distinct_pointers`: how many different pointers were chosen. `entropy`: of their distribution, in nats, 0 to log(queries).
    `most_common`, `most_common_share`: the commonest pointer and its share of the queries, 0 to 1. `changed_when_swapped`:
    share of the queries for which another query's embedding chooses otherwise from the same pool. `warnings`: what of this
    makes the selector no better than a fixed choice.
    """

    split: str
    queries: int
    shots: int
    distinct_pointers: int
    entropy: float
    most_common: tuple[int, ...]
    most_common_share: float
    changed_when_swapped: float
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "most_common": list(self.most_common), "warnings": list(self.warnings)}


def summarise_choices(
    own: Sequence[tuple[int, ...]], swapped: Sequence[tuple[int, ...]], *, split: str, shots: int
) -> SelectorHealth:
    """`own[i]`: the choice for query i; `swapped[i]`: that from its pool with another query's embedding. At least one query."""
    counts = Counter(own)
    shares = np.asarray(list(counts.values())) / len(own)
    # Of several equally common the lowest: the same answer in every process.
    most_common = min(counts, key=lambda pointer: (-counts[pointer], pointer))
    share = counts[most_common] / len(own)
    changed = sum(a != b for a, b in zip(own, swapped, strict=True)) / len(own)
    warnings: list[str] = []
    if changed < LEAST_CHANGED:
        warnings.append(
            f"ignores the query: another query's embedding changed the choice for {changed:.1%} of {len(own)} queries "
            f"(below {LEAST_CHANGED:.0%})"
        )
    if share > MOST_ALIKE:
        warnings.append(f"chooses {list(most_common)} for {share:.1%} of {len(own)} queries (above {MOST_ALIKE:.0%})")
    return SelectorHealth(
        split=split,
        queries=len(own),
        shots=shots,
        distinct_pointers=len(counts),
        entropy=max(0.0, float(-(shares * np.log(shares)).sum())),
        most_common=most_common,
        most_common_share=share,
        changed_when_swapped=changed,
        warnings=tuple(warnings),
    )


def measure_health(
    choose: Choose, pools: Pools, embeddings: Embeddings, *, shots: int, check: Callable[[], None] = lambda: None
) -> SelectorHealth:
    """Over at most QUERIES queries of val (else test, else the pools' own split), fewer where pools are large.

    `check` is called before every query, and may raise. InvalidConfig where a query's pool cannot be drawn or no query has a
    vector to be swapped with.
    """
    split, query_ids = sample_queries(pools, embeddings, QUERIES, "selector health")
    first = len(pools.pool(query_ids[0]))
    query_ids = query_ids[: max(_FEWEST_QUERIES, _CANDIDATES_READ // first)]
    own: list[tuple[int, ...]] = []
    swapped: list[tuple[int, ...]] = []
    for number, query_id in enumerate(query_ids):
        check()
        pool = pools.pool(query_id)
        other = query_ids[(number + 1) % len(query_ids)]
        own.append(tuple(choose(embeddings.query[query_id], pool)))
        swapped.append(tuple(choose(embeddings.query[other], pool)))
    return summarise_choices(own, swapped, split=split, shots=shots)


def checkpoint_health(root: DataRoot, tensors: Tensors, info: CheckpointInfo) -> dict[str, Any]:
    """SelectorHealth of a checkpoint on the data that lie in `root`, as JSON; {"unknown": why} where it cannot be measured."""
    try:
        return _measured(root, tensors, info).to_json()
    except LeverPlusError as exc:
        return {"unknown": str(exc)}


def health_warnings(health: Mapping[str, Any] | None) -> list[str]:
    """What a deployment's `health` warns of."""
    if health is None:
        return []
    return [f"not measured: {health['unknown']}"] if "unknown" in health else list(health.get("warnings", ()))


def shots_of(info: CheckpointInfo) -> int:
    """How many demonstrations are chosen where nobody says."""
    return max(info.shots, default=MAX_SHOTS)


def _measured(root: DataRoot, tensors: Tensors, info: CheckpointInfo) -> SelectorHealth:
    if not info.pool_policy:
        raise InvalidCheckpoint(path=info.checkpoint_id, reason="does not say which pools it was made for")
    dataset = Dataset.open(root.dataset(info.dataset), verify=False)
    embeddings = Embeddings.open(root.embeddings(info.dataset), dataset, verify=False)
    pools = Pools(dataset, embeddings, PoolPolicy.from_json(info.pool_policy))
    found = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    info.fingerprint.require_same(found, subject="what lies here", parts=("dataset", "pool"))
    policy, shots = selector_policy(tensors, info.selector_config), shots_of(info)

    def choose(query: Vector, pool: Ids) -> list[int]:
        ids = embeddings.require(pool)
        positions = policy.choose(query, embeddings.candidate[ids], shots).positions
        return pool[list(positions)].tolist()

    return measure_health(choose, pools, embeddings, shots=shots)


def sample_queries(pools: Pools, embeddings: Embeddings, count: int, purpose: str) -> tuple[str, list[ItemId]]:
    """At most `count` queries of val (else test, else the pools' own split), drawn for this purpose; and which split it is.

    InvalidConfig where it has fewer than two.
    """
    dataset = pools.dataset
    covered = embeddings.manifest.splits or dataset.splits
    split = next((name for name in ("val", "test") if name in dataset.splits and name in covered), pools.policy.candidate_split)
    ids = np.asarray(dataset.split_ids(split), dtype=np.int64)
    if len(ids) < 2:
        raise InvalidConfig(field="split", reason=f"{split!r} has {len(ids)} queries, and two are needed")
    embeddings.require(ids[:1])
    drawn = random_first(ids, min(count, len(ids)), derive_seed(purpose, split))
    return split, [ItemId(int(item_id)) for item_id in drawn]
