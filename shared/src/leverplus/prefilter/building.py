"""Making a prefilter for one checkpoint, and measuring what it costs in agreement with the exact choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from leverplus.checkpoints import load_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import Conflict, InvalidConfig
from leverplus.files import atomic_folder, file_sha256, write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.policies import PreparedCandidates, SelectorPolicy, selector_policy
from leverplus.pools import Pools, pool_fingerprint
from leverplus.prefilter.index import Prefilter, import_faiss
from leverplus.prefilter.manifest import (
    FORMAT,
    GROUPS_FILE,
    KEYS_FILE,
    MANIFEST_FILE,
    Measured,
    PrefilterManifest,
    Sources,
    require_whole,
)
from leverplus.selector.numpy_base import Indices
from leverplus.selector_health import sample_queries, shots_of
from leverplus.vectors import Vector

Progress = Callable[[str, int, int], None]
"""(phase, step, total)."""
Accuracies = Callable[[list[tuple[ItemId, tuple[list[int], list[int]]]]], dict[str, Any]]
"""Queries with the exact and the prefiltered pointer -> `Measured.accuracy`."""

_SEED = 0
_ROUNDS = 8
_ROWS_A_LIST = 64
_QUERIES_AT_ONCE = 16
_BYTES_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class PrefilterConfig:
    """`lists`: of the index, about 4 · √N where None. `probes`: how many of them are searched; where None the fewest (a power of
    two, or all) whose recall on other queries is at least `recall`. `queries`: half to settle the probes, half to measure."""

    handed_on: int = 256
    groups: int = 256
    lists: int | None = None
    probes: int | None = None
    recall: float = 0.99
    queries: int = 512

    def __post_init__(self) -> None:
        for name in ("handed_on", "groups", "lists", "probes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidConfig(field=name, reason=f"{value}, must be at least 1")
        if self.queries < 2:
            raise InvalidConfig(field="queries", reason=f"{self.queries}, must be at least 2: half settles the probes")
        if not 0 <= self.recall <= 1:
            raise InvalidConfig(field="recall", reason=f"{self.recall}, must be 0 to 1")


def build_prefilter(
    root: DataRoot,
    checkpoint_id: str,
    name: str,
    config: PrefilterConfig,
    *,
    progress: Progress = lambda phase, step, total: None,
    score: Accuracies | None = None,
) -> PrefilterManifest:
    """Writes the index into the checkpoint's folder, whole or not at all.

    NotInstalled without faiss; Conflict where the name is taken; InvalidConfig for a checkpoint that chooses from small pools;
    NotFound, InvalidCheckpoint, FingerprintMismatch as when it is served.
    """
    faiss = import_faiss(name)
    folder = root.prefilter(checkpoint_id, name)
    tensors, info = load_checkpoint(root.checkpoint(checkpoint_id))
    if folder.exists():
        raise Conflict(f"{folder} exists already; choose another name, or delete it")
    policy = require_whole(info)
    dataset = Dataset.open(root.dataset(info.dataset))
    embeddings = Embeddings.open(root.embeddings(info.dataset), dataset)
    found = Fingerprint(dataset=dataset.fingerprint(), pool=pool_fingerprint(policy, embeddings))
    info.fingerprint.require_same(found, subject=f"what lies here for checkpoint {checkpoint_id}", parts=("dataset", "pool"))
    pools = Pools(dataset, embeddings, policy)
    selector = selector_policy(tensors, info.selector_config)
    progress("project", 0, len(pools.candidates))
    candidates = _prepared(selector, embeddings, pools)
    lists = min(config.lists or round(4 * len(candidates) ** 0.5), len(candidates))
    progress("index", 0, len(candidates))
    index = _index(faiss, selector, candidates, lists)
    groups = _groups(faiss, candidates.context, config.groups)

    def searching(probes: int) -> Prefilter:
        return Prefilter(selector, index, groups, faiss=faiss, handed_on=config.handed_on, probes=probes)

    comparison = _Comparison(selector, candidates, pools, embeddings, shots_of(info), config.queries, progress)
    probes = min(config.probes or comparison.fewest_probes(searching, lists, config.recall), lists)
    measured = comparison.measure(searching(probes), score)
    with atomic_folder(folder) as target:
        faiss.write_index(index, str(target / KEYS_FILE))
        save_file({"groups": groups}, target / GROUPS_FILE)
        manifest = PrefilterManifest(
            name=name,
            format=FORMAT,
            sources=Sources.found(info, embeddings.manifest, pools.candidates),
            lists=lists,
            probes=probes,
            handed_on=config.handed_on,
            groups=len(groups),
            keys_sha256=file_sha256(target / KEYS_FILE),
            groups_sha256=file_sha256(target / GROUPS_FILE),
            measured=measured,
            faiss=faiss.__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(target / MANIFEST_FILE, manifest.to_json())
        # safetensors leaves its file to the owner alone; others may read it like its neighbour.
        (target / GROUPS_FILE).chmod((target / MANIFEST_FILE).stat().st_mode)
    return manifest


def _prepared(selector: SelectorPolicy, embeddings: Embeddings, pools: Pools) -> PreparedCandidates:
    candidates, known = selector.prepare_rows(embeddings.candidate, pools.candidates)
    if not known.all():
        embeddings.require(pools.candidates)
    return candidates


def _index(faiss: Any, selector: SelectorPolicy, candidates: PreparedCandidates, lists: int) -> Any:
    """Inverted lists of keys with a byte for each number: what it hands on is ranked by the numbers themselves."""
    hidden = selector.config.hidden_dim
    index = faiss.index_factory(hidden, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = _SEED, _ROUNDS, _ROWS_A_LIST
    index.cp.min_points_per_centroid = 1
    # Its training draws its own sample.
    index.train(selector.keys(candidates.take(_some(len(candidates), _ROWS_A_LIST * lists))))
    rows = max(1, _BYTES_AT_ONCE // (4 * hidden))
    for start in range(0, len(candidates), rows):
        block = np.arange(start, min(start + rows, len(candidates)))
        index.add(selector.keys(candidates.take(block)))
    return index


def _groups(faiss: Any, context: Vector, count: int) -> Vector:
    """Means [g, h] of equally many neighbours: attention weighs each alike."""
    count = min(count, len(context))
    clusters = faiss.Kmeans(
        context.shape[1],
        count,
        niter=_ROUNDS,
        seed=_SEED,
        max_points_per_centroid=_ROWS_A_LIST,
        min_points_per_centroid=1,
    )
    clusters.train(context)
    order = np.argsort(clusters.index.search(context, 1)[1][:, 0], kind="stable")
    return np.stack([context[part].mean(axis=0, dtype=np.float64) for part in np.array_split(order, count)]).astype(np.float32)


def _some(count: int, most: int) -> Indices:
    """At most `most` of `count` rows, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


class _Comparison:
    """Exact choices of held-out queries, and how often a prefilter makes the same."""

    def __init__(
        self,
        selector: SelectorPolicy,
        candidates: PreparedCandidates,
        pools: Pools,
        embeddings: Embeddings,
        shots: int,
        queries: int,
        progress: Progress,
    ) -> None:
        self._candidates = candidates
        self._ids = pools.candidates
        self._shots = shots
        self._split, self._queries = sample_queries(pools, embeddings, queries, "prefilter")
        embeddings.require(self._queries)
        self._vectors = embeddings.query[self._queries]
        self._left_out = [np.flatnonzero(pools.never_in_pool_of(query_id, self._ids)) for query_id in self._queries]
        self._exact: list[list[int]] = []
        for start in range(0, len(self._queries), _QUERIES_AT_ONCE):
            progress("choose", start, len(self._queries))
            closed = np.zeros((len(self._left_out[start : start + _QUERIES_AT_ONCE]), len(candidates)), dtype=np.bool_)
            for row, left_out in enumerate(self._left_out[start : start + _QUERIES_AT_ONCE]):
                closed[row, left_out] = True
            vectors = self._vectors[start : start + _QUERIES_AT_ONCE]
            beams = selector.choose_many(vectors, candidates, shots, closed=closed if closed.any() else None)
            self._exact += [[int(position) for position in choices[0].positions] for choices in beams]
        # The first half settles the number of probes, so it cannot say how good that is.
        self._half = len(self._queries) // 2

    def fewest_probes(self, searching: Callable[[int], Prefilter], lists: int, recall: float) -> int:
        """The first of 1, 2, 4, … that reaches `recall` over the first half, else all lists."""
        probes = 1
        while probes < lists and self._recall(searching(probes)) < recall:
            probes *= 2
        return min(probes, lists)

    def _recall(self, prefilter: Prefilter) -> float:
        found = [prefilter.handed_to(self._vectors[n], self._left_out[n]) for n in range(self._half)]
        exact = self._exact[: self._half]
        return float(np.mean([set(pointer) <= set(rows.tolist()) for pointer, rows in zip(exact, found, strict=True)]))

    def measure(self, prefilter: Prefilter, score: Accuracies | None) -> Measured:
        """Over the second half."""
        held_out = range(self._half, len(self._queries))
        recalled = agreed = 0
        pointers: list[tuple[ItemId, tuple[list[int], list[int]]]] = []
        for number in held_out:
            rows, chosen = self._choose(prefilter, number)
            exact = self._exact[number]
            recalled += set(exact) <= set(rows.tolist())
            agreed += exact == chosen
            pointers.append((self._queries[number], (self._items(exact), self._items(chosen))))
        return Measured(
            split=self._split,
            queries=len(held_out),
            shots=self._shots,
            recall=recalled / len(held_out),
            agreement=agreed / len(held_out),
            accuracy=None if score is None else score(pointers),
        )

    def _choose(self, prefilter: Prefilter, number: int) -> tuple[Indices, list[int]]:
        rows, choice = prefilter.choose(
            self._vectors[number], self._candidates.take, self._shots, left_out=self._left_out[number]
        )
        return rows, rows[list(choice.positions)].tolist()

    def _items(self, rows: Sequence[int]) -> list[int]:
        return self._ids[list(rows)].tolist()
