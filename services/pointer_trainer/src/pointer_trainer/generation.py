"""What a generation works with: its request, dataset, embeddings, pools, selector and queries, opened once a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from leverplus.checkpoints import load_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import Pools
from leverplus.selector import Selector
from leverplus.selector.model import selector_from_tensors
from pointer_trainer.proposals import initialised_selector
from pointer_trainer.query_sample import sample_queries
from pointer_trainer.requests import GenerateRequest


@dataclass(frozen=True)
class Generation:
    """`own`: the fingerprint of dataset and pools. `origin`: what `_meta` says of the selector. `query_ids` ascend."""

    request: GenerateRequest
    dataset: Dataset
    embeddings: Embeddings
    pools: Pools
    own: Fingerprint
    selector: Selector
    origin: dict[str, Any]
    query_ids: list[ItemId]


def open_generation(root: DataRoot, request: GenerateRequest) -> Generation:
    """Opens all of it, or gives what was opened for the same request before: the next shard needs what this one had.

    FingerprintMismatch for a checkpoint of another contract, and what opening a dataset or embeddings raises.
    """
    manifests = (root.dataset(request.dataset) / "dataset.json", root.embeddings(request.dataset) / "manifest.json")
    versions = tuple(path.stat().st_mtime_ns if path.is_file() else None for path in manifests)
    return _open(root, request.model_dump_json(), versions)


def close_generation() -> None:
    """Lets go of what was opened last."""
    _open.cache_clear()


@lru_cache(maxsize=1)
def _open(root: DataRoot, request_json: str, _versions: tuple[int | None, ...]) -> Generation:
    request = GenerateRequest.model_validate_json(request_json)
    dataset = Dataset.open(root.dataset(request.dataset))
    embeddings = Embeddings.open(root.embeddings(request.dataset), dataset)
    pools = Pools(dataset, embeddings, request.pool.policy())
    own = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    selector, origin = _selector(root, request, own, embeddings.manifest.d_model)
    query_ids = sample_queries(dataset, request.split, request.queries, request.seed)
    return Generation(request, dataset, embeddings, pools, own, selector, origin, query_ids)


def _selector(root: DataRoot, request: GenerateRequest, own: Fingerprint, d_model: int) -> tuple[Selector, dict[str, Any]]:
    if request.checkpoint is None:
        return initialised_selector(d_model, request.seed)
    tensors, info = load_checkpoint(root.checkpoint(request.checkpoint))
    info.fingerprint.require_same(
        own, subject=f"what checkpoint {request.checkpoint!r} is to choose from", parts=("dataset", "pool")
    )
    origin = {"source": "checkpoint", "checkpoint": request.checkpoint, "model_sha256": info.model_sha256}
    return selector_from_tensors(tensors, info.selector_config), origin
