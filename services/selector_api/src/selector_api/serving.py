"""One checkpoint, ready to choose, with the data it was trained on.

It is served only where dataset, embeddings and pool policy have the fingerprint that it was trained under.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from leverplus.checkpoints import CheckpointInfo, Tensors
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidCheckpoint, LeverPlusError
from leverplus.fingerprint import Fingerprint, digest
from leverplus.ids import Position
from leverplus.policies import random_positions, selector_policy, similar_positions, zero_shot
from leverplus.pools import Ids, PoolPolicy, Pools, Vector, pool_fingerprint
from leverplus.prefilter import Prefilter, Sources, read_prefilter_manifest
from leverplus.selection import PolicyName, PoolDescription, UsedPrefilter
from leverplus.selector_health import SelectorHealth, measure_health, shots_of
from selector_api.choosing import Asked, Chooser, Chosen, Sought
from selector_api.own_image import OwnImage

_SIMILAR: dict[str, Literal["image", "text", "joint"]] = {
    "similar_image": "image",
    "similar_text": "text",
    "similar_joint": "joint",
}

_POOLS_KEPT = 4_096
_POOL_IDS_KEPT = 2_000_000
QUICK_POOL = 1_024
"""Choosing from no more items than this takes less time than handing the work to a thread and back under load."""


_UNDESCRIBED: PoolDescription = {"size": 0, "policy": {}, "sha256": "", "excluded": []}


@dataclass(frozen=True, slots=True)
class Pool:
    """Item ids [K] in order, and what the answer says of them."""

    ids: Ids
    description: PoolDescription

    @classmethod
    def described(cls, ids: Ids, policy: dict[str, Any]) -> Pool:
        return cls(ids, {"size": len(ids), "policy": policy, "sha256": digest(ids), "excluded": []})

    def without(self, left_out: npt.NDArray[np.bool_]) -> Pool:
        """What is left when the ids that `left_out` [K] marks are taken out; they stand in the description."""
        if not left_out.any():
            return self
        narrowed = self.described(self.ids[~left_out], self.description["policy"])
        narrowed.description["excluded"] = [*self.description["excluded"], *self.ids[left_out].tolist()]
        return narrowed


@dataclass(frozen=True, slots=True)
class Query:
    """Either an item of the dataset, or something else: its vector [d], and where they are known its image file and question."""

    item_id: int | None
    vector: Vector | None = None
    image: bytes | None = None
    question: str | None = None

    @property
    def data(self) -> bytes:
        """What stands for a query outside the dataset: its image's bytes, else its vector's (float32, little-endian)."""
        if self.image is not None:
            return self.image
        assert self.vector is not None
        return b"" if self.question is not None else self.vector.astype("<f4").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPrefilter:
    """A prefilter, and what the answer says of it."""

    search: Prefilter
    description: UsedPrefilter


class Served:
    """A checkpoint with all that its choices depend on. `digests`: fingerprint part -> sha256 of what is served.

    Raises FingerprintMismatch naming each field in which what lies here departs from what the checkpoint was made
    from, InvalidCheckpoint where it does not say that.
    """

    def __init__(self, tensors: Tensors, info: CheckpointInfo, dataset: Dataset, embeddings: Embeddings) -> None:
        if not info.pool_policy or info.fingerprint.dataset is None or info.fingerprint.pool is None:
            reason = (
                "does not say which dataset, embeddings and pools it was made for, so it cannot be served; import it with them"
            )
            raise InvalidCheckpoint(path=info.checkpoint_id, reason=reason)
        self.info = info
        self.dataset = dataset
        self.embeddings = embeddings
        policy = PoolPolicy.from_json(info.pool_policy)
        found = Fingerprint(dataset=dataset.fingerprint(), pool=pool_fingerprint(policy, embeddings))
        subject = f"what lies here for checkpoint {info.checkpoint_id}"
        info.fingerprint.require_same(found, subject=subject, parts=("dataset", "pool"))
        self.digests = found.digests()
        self._pools = Pools(dataset, embeddings, policy)
        whole = policy.sampler in ("all", "from_pointers")
        selector = selector_policy(tensors, info.selector_config)
        self._selector = selector
        self._chooser = Chooser(selector, embeddings, self._pools.candidates, whole=whole)
        self.quick = (len(self._pools.candidates) if whole else policy.k) <= QUICK_POOL
        self._own_image = OwnImage(dataset)
        self._seed = policy.seed
        self._pool_policy = policy.fingerprint()
        # A pool is worth keeping, but one of the sampler `all` is as long as the split.
        kept = min(_POOLS_KEPT, _POOL_IDS_KEPT // policy.k) if "k" in self._pool_policy else 1
        self._pool_of_item = lru_cache(max(1, kept))(self._draw_pool)

    def pool(self, query: Query) -> Pool:
        """The pool of an item, or of a query outside the dataset: seeded by its image and question, else by its vector.

        An item that shows the query's own image is in none, whatever the policy that the checkpoint was trained with.
        """
        if query.item_id is not None:
            return self._pool_of_item(query.item_id)
        same = self._item_of_image(query)
        ids = self._pools.pool_of_unseen(
            image=query.data,
            question=query.question or "",
            vector=query.vector,
            image_id=None if same is None else self.dataset.items[same].image_id,
        )
        return Pool.described(ids, self._pool_policy).without(self.showing_its_image(query, ids))

    def health(self, check: Callable[[], None]) -> SelectorHealth:
        """What `measure_health` finds of the checkpoint's own choices."""
        shots = shots_of(self.info)

        def choose(vector: Vector, ids: Ids) -> list[int]:
            (found,) = self.choose([(Query(None, vector), Pool(ids, _UNDESCRIBED))], shots, 1)
            if isinstance(found, LeverPlusError):
                raise found
            return found.pointer

        return measure_health(choose, self._pools, self.embeddings, shots=shots, check=check)

    def showing_its_image(self, query: Query, ids: Ids) -> npt.NDArray[np.bool_]:
        """[K] which of `ids` [K] show the query's own image, as far as it is known."""
        item_id = self._item_of_image(query)
        return np.zeros(len(ids), dtype=np.bool_) if item_id is None else self._own_image.shown_by(ids, item_id)

    def _item_of_image(self, query: Query) -> int | None:
        if query.item_id is not None or query.image is None:
            return query.item_id
        return self._own_image.item_with(query.image)

    def choose(self, asked: Sequence[tuple[Query, Pool]], shots: int, beam: int) -> list[Chosen | LeverPlusError]:
        """What the selector chooses for each query from its pool, or why nothing."""
        return self._chooser.choose([Asked(query.item_id, query.vector, pool.ids) for query, pool in asked], shots, beam)

    def load_prefilter(self, root: DataRoot, name: str) -> LoadedPrefilter:
        """NotFound; FingerprintMismatch where it was made from other weights, vectors or candidates than lie here; NotInstalled;
        InvalidIndex."""
        manifest = read_prefilter_manifest(root, self.info.checkpoint_id, name)
        manifest.require_sources(Sources.found(self.info, self.embeddings.manifest, self._pools.candidates))
        search = Prefilter.open(root.prefilter(self.info.checkpoint_id, name), self._selector, manifest)
        measured = manifest.measured
        description: UsedPrefilter = {
            "name": name,
            "handed_on": manifest.handed_on,
            "recall": measured.recall,
            "agreement": measured.agreement,
            "accuracy": measured.accuracy,
            "queries": measured.queries,
            "split": measured.split,
            "shots": measured.shots,
        }
        return LoadedPrefilter(search, description)

    def choose_among_nearest(
        self, prefilter: LoadedPrefilter, query: Query, shots: int, beam: int, exclude: Sequence[int]
    ) -> tuple[Pool, Chosen]:
        """What the prefilter hands on for a query, as a pool, and what the selector chooses from it."""
        same = self._item_of_image(query)
        shown = self._own_image.items_with_that_of(same) if same is not None else np.empty(0, dtype=np.int64)
        left_out = np.union1d(shown, np.asarray(exclude, dtype=np.int64))
        left_out = self._chooser.candidates_among(left_out)
        ids, chosen = self._chooser.choose_among_nearest(
            prefilter.search, Sought(query.item_id, query.vector, left_out), shots, beam
        )
        pool = Pool.described(ids, self._pool_policy)
        image_id = None if same is None else self.dataset.items[same].image_id
        pool.description["excluded"] += left_out[~self._pools.never_in_pool_of(query.item_id, left_out, image_id)].tolist()
        return pool, chosen

    def compare(self, query: Query, pool: Pool, policy: PolicyName, shots: int) -> tuple[Position, ...]:
        """Positions in the pool by one of the policies that a selector is compared with."""
        if policy == "zero_shot":
            return zero_shot()
        if policy == "random":
            identity = query.item_id if query.item_id is not None else _identity(query)
            return random_positions(len(pool.ids), shots, seed=self._seed, query=identity)
        vector = query.vector
        if query.item_id is not None:
            vector = self.embeddings.query[self.embeddings.require([query.item_id])[0]]
        assert vector is not None
        candidates = self.embeddings.candidate[self.embeddings.require(pool.ids)]
        return similar_positions(vector, candidates, self.embeddings.manifest.blocks, _SIMILAR[policy], shots)

    def _draw_pool(self, item_id: int) -> Pool:
        pool = Pool.described(self._pools.pool(item_id), self._pool_policy)
        return pool.without(self._own_image.shown_by(pool.ids, item_id))


def _identity(query: Query) -> str:
    """Of a query outside the dataset, for what is drawn for it."""
    data = sha256(query.data).hexdigest()
    return data if query.question is None else f"{data} {query.question}"
