"""The reference's pair of files, `query_embeddings.pt` and `candidate_embeddings.pt`, in and out.

Each holds one tensor [n, d] with a row for each item of a split, in its order; the reference made the train split's. Splits
without a pair are unknown after reading, so a query of them can be neither evaluated nor served.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from leverplus.dataset import Dataset
from leverplus.embeddings.folder import Block, EmbeddingManifest, Embeddings, FloatMatrix
from leverplus.errors import InvalidEmbeddings, NotFound
from leverplus.files import atomic_file, file_sha256
from leverplus.torch_files import load_plain

QUERY_FILE = "query_embeddings.pt"
CANDIDATE_FILE = "candidate_embeddings.pt"


def read_pair(source: Path | tuple[Path, Path], dataset: Dataset, *, split: str = "train") -> Embeddings:
    """`read_pairs` of one split, from a folder with the two files, or from (query file, candidate file)."""
    return read_pairs({split: source}, dataset)


def read_pairs(sources: Mapping[str, Path | tuple[Path, Path]], dataset: Dataset) -> Embeddings:
    """Embeddings of `dataset` from a pair of files for each of some splits (at least one).

    Vectors are taken as they are (half precision becomes float32), as one block named `joint`. Raises NotFound for a
    missing file, InvalidEmbeddings for one that is no tensor, not finite, has another number of rows than the split, or
    another width than the file before.
    """
    files: dict[str, dict[str, str]] = {}
    query = candidate = np.empty((0, 0), dtype=np.float32)
    for split, source in sources.items():
        query_path, candidate_path = source if isinstance(source, tuple) else (source / QUERY_FILE, source / CANDIDATE_FILE)
        ids = np.asarray(dataset.split_ids(split), dtype=np.int64)
        query_rows = _read_rows(query_path, len(ids), dataset=dataset, split=split)
        candidate_rows = _read_rows(candidate_path, len(ids), dataset=dataset, split=split)
        if not files:
            # A row that stays NaN is unknown.
            query = np.full((len(dataset), query_rows.shape[1]), np.nan, dtype=np.float32)
            candidate = query.copy()
        for path, rows in ((query_path, query_rows), (candidate_path, candidate_rows)):
            if rows.shape[1] != query.shape[1]:
                raise InvalidEmbeddings(path=path, reason=f"vectors of {rows.shape[1]}, the file before has {query.shape[1]}")
        query[ids], candidate[ids] = query_rows, candidate_rows
        files[split] = {"query_sha256": file_sha256(query_path), "candidate_sha256": file_sha256(candidate_path)}
    same = np.array_equal(query, candidate, equal_nan=True)
    manifest = EmbeddingManifest(
        encoder={"name": "reference-pair", "files": files},
        dataset_sha256=dataset.info.sha256,
        blocks=(Block("joint", 0, query.shape[1]),),
        d_model=query.shape[1],
        count=len(dataset),
        candidate="same" if same else "separate",
        source="reference",
        splits=None if set(sources) == set(dataset.splits) else tuple(sources),
    )
    return Embeddings(query, query if same else candidate, manifest)


def write_pair(embeddings: Embeddings, dataset: Dataset, folder: Path, *, split: str = "train") -> tuple[Path, Path]:
    """Writes the rows of `split`, in its order, as the two files; returns their paths."""
    ids = embeddings.require(dataset.split_ids(split))
    paths = (folder / QUERY_FILE, folder / CANDIDATE_FILE)
    for path, matrix in zip(paths, (embeddings.query, embeddings.candidate), strict=True):
        with atomic_file(path) as stream:
            torch.save(torch.from_numpy(matrix[ids]), stream)
    return paths


def _read_rows(path: Path, expected: int, *, dataset: Dataset, split: str) -> FloatMatrix:
    if not path.is_file():
        raise NotFound(what="file", name=path.name, hint=f"{path.parent} should hold {QUERY_FILE} and {CANDIDATE_FILE}")
    try:
        value = load_plain(path)
    except pickle.UnpicklingError as exc:
        raise InvalidEmbeddings(path=path, reason=f"not a file of plain tensors: {exc}") from exc
    if not isinstance(value, torch.Tensor) or value.ndim != 2 or not value.is_floating_point():
        found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InvalidEmbeddings(path=path, reason=f"holds {found}, expected one floating-point tensor [items, d]")
    if len(value) != expected:
        raise InvalidEmbeddings(
            path=path, reason=f"{len(value)} rows, but split {split!r} of dataset {dataset.name!r} has {expected} items"
        )
    rows: FloatMatrix = value.detach().to(torch.float32).contiguous().numpy()
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise InvalidEmbeddings(path=path, reason=f"row {int(np.argmin(finite))} has a value that is not finite")
    return rows
