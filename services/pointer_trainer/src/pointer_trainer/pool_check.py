"""Before a job is accepted: its pools can be made, and its checkpoints were made for them. Nothing heavy is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leverplus.checkpoints import CheckpointInfo
from leverplus.dataset import Dataset
from leverplus.embeddings import EmbeddingManifest
from leverplus.embeddings.folder import manifest_fingerprint
from leverplus.errors import InvalidConfig
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy
from pointer_trainer.requests import EvaluateRequest, PoolSettings


def check_pools(dataset: Dataset, policy: PoolPolicy, query_ids: Sequence[ItemId], shots: Sequence[int]) -> None:
    """InvalidConfig where a pool is smaller than the largest number of shots, or the split offers a query fewer than k."""
    candidates = dataset.split_ids(policy.candidate_split) if policy.ids is None else list(policy.ids)
    inside = set(candidates)
    of_image = Counter(dataset.item(item_id).image_id for item_id in candidates)
    fixed_size = policy.sampler not in ("all", "from_pointers")
    for query_id in query_ids:
        left_out = of_image[dataset.item(query_id).image_id] if "same_image" in policy.exclude else query_id in inside
        offered = len(candidates) - left_out
        if fixed_size and offered < policy.k:
            reason = (
                f"{policy.k}, but query {query_id} has {offered} candidates in split {policy.candidate_split!r} after "
                "exclusions; ask for at most that many"
            )
            raise InvalidConfig(field="pool.k", reason=reason)
        size = policy.k if fixed_size else offered
        if size < max(shots):
            reason = f"{max(shots)}, but the pool of query {query_id} has {size} items; enlarge pool.k or ask for fewer"
            raise InvalidConfig(field="shots", reason=reason)


def check_contract(
    dataset: Dataset, manifest: EmbeddingManifest, policy: PoolPolicy, checkpoints: Sequence[CheckpointInfo]
) -> None:
    """FingerprintMismatch for a checkpoint that was made for another dataset, other embeddings or other pools."""
    pool = {"policy": policy.fingerprint(), "embeddings": manifest_fingerprint(manifest)}
    found = Fingerprint(dataset=dataset.fingerprint(), pool=pool)
    for info in checkpoints:
        subject = f"what checkpoint {info.checkpoint_id!r} is to choose from"
        info.fingerprint.require_same(found, subject=subject, parts=("dataset", "pool"))


def evaluation_policy(request: EvaluateRequest, infos: Sequence[CheckpointInfo]) -> PoolPolicy:
    """The pools that are asked for, else those of the first checkpoint, else the default."""
    if request.pool is not None:
        return request.pool.policy()
    if not infos:
        return PoolSettings().policy()
    if not infos[0].pool_policy:
        reason = f"checkpoint {infos[0].checkpoint_id!r} does not say which pools it was made for; state them in `pool`"
        raise InvalidConfig(field="pool", reason=reason)
    return PoolPolicy.from_json(infos[0].pool_policy)
