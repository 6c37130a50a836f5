"""The reference's pair of files, `query_embeddings.pt` and `candidate_embeddings.pt`, in and out.

Each holds one tensor [n, d] with a row for each item of the train split, in its order. Other splits have no rows there,
so after reading they are unknown, and a query of them can be neither embedded nor served from such a pair.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

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
    """Embeddings of `dataset` from a folder with the two files, or from (query file, candidate file).

    Vectors are taken as they are (half precision becomes float32), as one block named `joint`. Raises NotFound for a
    missing file, InvalidEmbeddings for one that is no tensor, not finite, or has another number of rows than the split.
    """
    query_path, candidate_path = source if isinstance(source, tuple) else (source / QUERY_FILE, source / CANDIDATE_FILE)
    ids = np.asarray(dataset.split_ids(split), dtype=np.int64)
    query_rows = _read_rows(query_path, len(ids), dataset=dataset, split=split)
    candidate_rows = _read_rows(candidate_path, len(ids), dataset=dataset, split=split)
    if query_rows.shape != candidate_rows.shape:
        raise InvalidEmbeddings(
            path=candidate_path, reason=f"vectors of {candidate_rows.shape[1]}, {query_path.name} has {query_rows.shape[1]}"
        )
    same: Literal["same", "separate"] = "same" if np.array_equal(query_rows, candidate_rows) else "separate"
    query = _spread(query_rows, ids, len(dataset))
    candidate = query if same == "same" else _spread(candidate_rows, ids, len(dataset))
    manifest = EmbeddingManifest(
        encoder={
            "name": "reference-pair",
            "query_sha256": file_sha256(query_path),
            "candidate_sha256": file_sha256(candidate_path),
        },
        dataset_sha256=dataset.info.sha256,
        blocks=(Block("joint", 0, query.shape[1]),),
        d_model=query.shape[1],
        count=len(dataset),
        candidate=same,
        source="reference",
        split=None if len(ids) == len(dataset) else split,
    )
    return Embeddings(query, candidate, manifest)


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


def _spread(rows: FloatMatrix, ids: np.ndarray[Any, np.dtype[np.int64]], count: int) -> FloatMatrix:
    """[n, d] → [count, d] with row k at ids[k], the others NaN: unknown."""
    spread = np.full((count, rows.shape[1]), np.nan, dtype=np.float32)
    spread[ids] = rows
    return spread
