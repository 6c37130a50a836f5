"""The pool of a query: the ordered list of items it may choose its demonstrations from.

One contract from scoring to serving: a policy, the dataset and (for the samplers by similarity) the embeddings give the
same pool in every process. Samplers:

- `random`: k of the split, drawn by a hash of the policy's seed and the query.
- `similar_image`, `similar_text`, `similar_joint`: the k nearest by cosine of that block (the whole vector), nearest first.
- `mixed`: the ceil(k/2) nearest by the whole vector, then the rest drawn as in `random` from what is left.
- `all`: every item of the split, by id. Has no k.
- `from_pointers`: a stated list of ids, by id: the shared pool of a file that did not say its pools. Has no k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings, require_block
from leverplus.errors import FingerprintMismatch, InvalidConfig, InvalidEmbeddings
from leverplus.fingerprint import digest
from leverplus.random_order import LeftOut, RandomOrder, derive_seed, random_first

Sampler = Literal["random", "similar_image", "similar_text", "similar_joint", "mixed", "all", "from_pointers"]
Exclusion = Literal["query", "same_image"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
EXCLUSIONS: tuple[Exclusion, ...] = get_args(Exclusion)

Ids = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float32]

_BLOCKS: dict[str, str | None] = {"similar_image": "image", "similar_text": "question", "similar_joint": None, "mixed": None}


@dataclass(frozen=True)
class PoolPolicy:
    """How pools are made. `k` and `seed` mean nothing to some samplers; there they are left out of `to_json`.

    `exclude`: what a pool never holds: `query` the query itself (always), `same_image` items that show its image.
    `ids`: for `from_pointers` only. Raises InvalidConfig.
    """

    sampler: Sampler = "random"
    k: int = 64
    seed: int = 0
    candidate_split: str = "train"
    exclude: tuple[Exclusion, ...] = EXCLUSIONS
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InvalidConfig(field="pool.sampler", reason=f"{self.sampler!r} is none of {', '.join(SAMPLERS)}")
        if self.k < 1:
            raise InvalidConfig(field="pool.k", reason=f"{self.k}, must be at least 1")
        unknown = sorted(set(self.exclude) - set(EXCLUSIONS))
        if unknown:
            raise InvalidConfig(field="pool.exclude", reason=f"{unknown} is none of {', '.join(EXCLUSIONS)}")
        if "query" not in self.exclude:
            raise InvalidConfig(field="pool.exclude", reason="'query' is missing: a query is never its own demonstration")
        if self.sampler == "from_pointers" and self.ids is None:
            reason = "missing: sampler 'from_pointers' is a stated list of item ids; give it, or choose another sampler"
            raise InvalidConfig(field="pool.ids", reason=reason)
        if self.sampler != "from_pointers" and self.ids is not None:
            reason = f"belong to sampler 'from_pointers' only, and the sampler is {self.sampler!r}; leave one of them out"
            raise InvalidConfig(field="pool.ids", reason=reason)
        if self.ids is not None and len(self.ids) == 0:
            raise InvalidConfig(field="pool.ids", reason="empty: no pointer names a demonstration")
        # Equal policies must be equal values, whatever order their parts were written in.
        object.__setattr__(self, "exclude", tuple(name for name in EXCLUSIONS if name in self.exclude))
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(sorted({int(item_id) for item_id in self.ids})))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PoolPolicy:
        """Inverse of `to_json`; InvalidConfig for an unknown field or a wrong type."""
        unknown = sorted(set(value) - {field.name for field in fields(cls)})
        if unknown:
            names = ", ".join(field.name for field in fields(cls))
            raise InvalidConfig(field="pool", reason=f"unknown field {unknown[0]!r}; there are {names}")
        values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        for name in ("k", "seed"):
            if name in values and type(values[name]) is not int:
                raise InvalidConfig(field=f"pool.{name}", reason=f"{values[name]!r} is no whole number")
        for name in ("exclude", "ids"):
            if values.get(name) is not None and not isinstance(values[name], tuple):
                raise InvalidConfig(field=f"pool.{name}", reason=f"{values[name]!r} is no list")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The fields that matter to the sampler, as JSON."""
        value: dict[str, Any] = {
            "sampler": self.sampler,
            "candidate_split": self.candidate_split,
            "exclude": list(self.exclude),
        }
        if self.sampler not in ("all", "from_pointers"):
            value["k"] = self.k
        if self.sampler in ("random", "mixed"):
            value["seed"] = self.seed
        if self.ids is not None:
            value["ids"] = list(self.ids)
        return value

    def fingerprint(self) -> dict[str, Any]:
        """`to_json` with a long list of ids as its hash, so that a mismatch can be printed."""
        value = self.to_json()
        ids = value.pop("ids", None)
        return value if ids is None else {**value, "ids_count": len(ids), "ids_sha256": digest(ids)}


class Pools:
    """Pools of one dataset under one policy. Holds unit vectors of the candidates, so make one and keep it."""

    def __init__(self, dataset: Dataset, embeddings: Embeddings | None, policy: PoolPolicy) -> None:
        """Raises InvalidConfig (embeddings missing, no such block, an id outside the split), NotFound (no such split)."""
        self.dataset = dataset
        self.embeddings = embeddings
        self.policy = policy
        split = np.asarray(dataset.split_ids(policy.candidate_split), dtype=np.int64)
        self.candidates = split if policy.ids is None else _inside(policy, split)
        """Item ids [N] that pools are made of, ascending."""
        codes: dict[str, int] = {}
        self._image_codes = np.asarray([codes.setdefault(item.image_id, len(codes)) for item in dataset.items])
        self._codes = codes
        self._candidate_codes = self._image_codes[self.candidates]
        self._rows = np.arange(len(self.candidates))
        self._order = RandomOrder(self.candidates)
        self._columns = slice(None)
        self._directions: Vector | None = None
        if policy.sampler in _BLOCKS:
            self._prepare_similarity()

    def _prepare_similarity(self) -> None:
        sampler, embeddings = self.policy.sampler, self.embeddings
        if embeddings is None:
            raise InvalidConfig(field="pool.sampler", reason=f"{sampler!r} needs embeddings; run `leverplus embed` first")
        if embeddings.manifest.dataset_sha256 != self.dataset.info.sha256:
            differences = {"dataset.items_sha256": (self.dataset.info.sha256, embeddings.manifest.dataset_sha256)}
            raise FingerprintMismatch(subject="embeddings for the pools", differences=differences)
        name = _BLOCKS[sampler]
        if name is not None:
            self._columns = require_block(embeddings.manifest.blocks, name)
        ids = embeddings.require(self.candidates)
        self._directions = _unit(embeddings.candidate[ids, self._columns])

    def pool(self, query_id: int) -> Ids:
        """Ordered item ids [K] of a query of the dataset, int64.

        Raises NotFound (no such item), InvalidConfig (fewer than k candidates are left), InvalidEmbeddings (the query
        has no vector, and the sampler needs one).
        """
        self.dataset.item(query_id)
        image = int(self._image_codes[query_id]) if "same_image" in self.policy.exclude else None
        vector = None
        if self._directions is not None and self.embeddings is not None:
            vector = self.embeddings.query[self.embeddings.require([query_id])[0]]
        seed = derive_seed("item", self.policy.seed, int(query_id))
        return self._draw(partial(self._left_out, query_id, image), vector, seed, query=f"query {query_id}")

    def pool_of_unseen(self, *, image: bytes, question: str, vector: Vector | None = None, image_id: str | None = None) -> Ids:
        """Pool of a query that is not in the dataset, seeded by its image's bytes and its question.

        vector [d]: its embedding, needed by the samplers by similarity. image_id: the dataset's own id of the image,
        where it is known to be one of its images.
        """
        code = self._codes.get(image_id) if "same_image" in self.policy.exclude and image_id is not None else None
        if self._directions is not None and vector is None:
            raise InvalidEmbeddings(
                path="query", reason=f"sampler {self.policy.sampler!r} needs the query's vector, and none was given"
            )
        seed = derive_seed(self.policy.seed, image, question)
        return self._draw(partial(self._left_out, None, code), vector, seed, query="the query")

    def never_in_pool_of(self, query_id: int | None, ids: Ids, image_id: str | None = None) -> npt.NDArray[np.bool_]:
        """Which item `ids` [m] the policy leaves out of every pool of a query: an item, or what shows the image `image_id`."""
        image = None
        if "same_image" in self.policy.exclude:
            image = int(self._image_codes[query_id]) if query_id is not None else self._codes.get(image_id or "")
        found = np.zeros(len(ids), dtype=np.bool_) if query_id is None else ids == query_id
        return found if image is None else found | (self._image_codes[ids] == image)

    def _left_out(self, query_id: int | None, image: int | None, rows: Ids) -> npt.NDArray[np.bool_]:
        """Which of the candidates at `rows` [m] are the query itself or show its image, by the image's code."""
        found = np.zeros(len(rows), dtype=np.bool_) if query_id is None else self.candidates[rows] == query_id
        return found if image is None else found | (self._candidate_codes[rows] == image)

    def _draw(self, left_out: LeftOut, vector: Vector | None, seed: int, *, query: str) -> Ids:
        policy = self.policy
        if policy.sampler == "random":
            drawn = self._order.first(policy.k, seed, left_out)
            if len(drawn) == policy.k:
                return drawn
        keep = ~left_out(self._rows)
        eligible = self.candidates[keep]
        if policy.sampler in ("all", "from_pointers"):
            if not len(eligible):
                raise InvalidConfig(field="pool", reason=f"no candidate is left for {query} after exclusions")
            return eligible
        if len(eligible) < policy.k:
            raise InvalidConfig(
                field="pool.k",
                reason=f"{policy.k}, but {query} has {len(eligible)} candidates in split {policy.candidate_split!r} after "
                f"exclusions; ask for at most that many",
            )
        assert vector is not None
        nearest_count = policy.k if policy.sampler != "mixed" else (policy.k + 1) // 2
        nearest = eligible[self._nearest(keep, vector, nearest_count)]
        if policy.sampler != "mixed":
            return nearest
        rest = np.setdiff1d(eligible, nearest, assume_unique=True)
        return np.concatenate([nearest, random_first(rest, policy.k - nearest_count, seed)])

    def _nearest(self, keep: npt.NDArray[np.bool_], vector: Vector, count: int) -> Ids:
        """Indices among the kept candidates of the `count` nearest, nearest first, the lower id on a tie."""
        assert self._directions is not None
        similarity = (self._directions @ _unit(vector[None, self._columns])[0])[keep]
        # Six decimals: the last bits depend on where a row lies in memory, and equal vectors must tie.
        distance = -np.round(similarity.astype(np.float64), 6)
        if count < len(distance):
            # Every row at or below the count-th distance, so that ties at the edge are cut by id as well.
            edge = np.partition(distance, count - 1)[count - 1]
            near = np.flatnonzero(distance <= edge)
        else:
            near = np.arange(len(distance))
        return near[np.argsort(distance[near], kind="stable")][:count]

    def fingerprint(self) -> dict[str, Any]:
        """The `pool` part of a fingerprint."""
        return pool_fingerprint(self.policy, self.embeddings)


def pool_fingerprint(policy: PoolPolicy, embeddings: Embeddings | None) -> dict[str, Any]:
    """The `pool` part of a fingerprint, of pools that need not exist yet."""
    return {"policy": policy.fingerprint(), "embeddings": None if embeddings is None else embeddings.fingerprint()}


def _inside(policy: PoolPolicy, split: Ids) -> Ids:
    ids = np.asarray(policy.ids, dtype=np.int64)
    outside = ids[~np.isin(ids, split)]
    if outside.size:
        raise InvalidConfig(field="pool.ids", reason=f"item {outside[0]} is not in split {policy.candidate_split!r}")
    return ids


def _unit(rows: Vector) -> Vector:
    """Rows [n, d] scaled to unit length; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
