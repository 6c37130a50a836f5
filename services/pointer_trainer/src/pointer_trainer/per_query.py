"""Accuracies per query as Parquet: what every number of an evaluation can be worked out from again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leverplus.dataset import Dataset
from leverplus.errors import InvalidInput, NotFound
from leverplus.files import Fence, atomic_file, file_sha256
from leverplus.ids import ItemId
from pointer_trainer.measuring import Measured

FILE = "per_query.parquet"

SCHEMA = pa.schema(
    [
        ("query_id", pa.int64()),
        ("image_id", pa.string()),
        ("system", pa.dictionary(pa.int32(), pa.string())),
        ("checkpoint", pa.dictionary(pa.int32(), pa.string())),  # null: a baseline
        ("shots", pa.int8()),
        ("draw", pa.int16()),  # 0 but for random
        ("pointer", pa.list_(pa.int64())),
        ("accuracy", pa.float64()),
    ]
)


def write_per_query(folder: Path, measured: Measured, dataset: Dataset, *, fence: Fence) -> str:
    """A row for each query, contender and draw, in the queries' order; the file's sha256."""
    images = [dataset.item(query_id).image_id for query_id in measured.query_ids]
    tables: list[pa.Table] = []
    for contender, pointers in measured.pointers.items():
        counts = [len(of_query) for of_query in pointers]
        total = sum(counts)
        columns = {
            "query_id": np.repeat(np.asarray(measured.query_ids, dtype=np.int64), counts),
            "image_id": [image for image, count in zip(images, counts, strict=True) for _ in range(count)],
            "system": [contender.system] * total,
            "checkpoint": [contender.checkpoint] * total,
            "shots": [contender.shots] * total,
            "draw": [draw for count in counts for draw in range(count)],
            "pointer": [list(pointer) for of_query in pointers for pointer in of_query],
            "accuracy": [value for of_query in measured.accuracies[contender] for value in of_query],
        }
        arrays = [_array(columns[field.name], field.type) for field in SCHEMA]
        tables.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
    with atomic_file(folder / FILE, fence=fence) as stream:
        pq.write_table(pa.concat_tables(tables).unify_dictionaries(), stream, compression="zstd")
    return file_sha256(folder / FILE)


@dataclass(frozen=True)
class PerQuery:
    """What a gate needs of an evaluation: accuracies [n] by number of shots, of baselines and of checkpoints.

    In the order of `query_ids` and `image_ids`; draws of a query are averaged."""

    query_ids: Sequence[ItemId]
    image_ids: Sequence[str]
    baselines: Mapping[str, Mapping[int, NDArray[np.float64]]]
    checkpoints: Mapping[str, Mapping[int, NDArray[np.float64]]]


def read_per_query(folder: Path, sha256: str) -> PerQuery:
    """NotFound where the run's directory was deleted, InvalidInput where the file is not the one that was written."""
    path = folder / FILE
    if not path.is_file():
        raise NotFound(what="accuracies per query", name=str(path), hint="the run directory was deleted: evaluate again")
    if (found := file_sha256(path)) != sha256:
        raise InvalidInput(f"{path}: sha256 is {found[:12]}…, the evaluation says {sha256[:12]}…: evaluate again")
    table = pq.read_table(path)
    query = table["query_id"].to_numpy()
    ids, first, row = np.unique(query, return_index=True, return_inverse=True)
    images = table["image_id"].take(pa.array(first)).to_pylist()
    shots, accuracy = table["shots"].to_numpy(), table["accuracy"].to_numpy()
    baselines: dict[str, dict[int, NDArray[np.float64]]] = {}
    checkpoints: dict[str, dict[int, NDArray[np.float64]]] = {}
    # A contender's rows lie together: by system alone two seeds would be one.
    names = list(zip(table["system"].to_pylist(), table["checkpoint"].to_pylist(), strict=True))
    by_name: dict[tuple[str, str | None], list[int]] = {}
    for index, name in enumerate(names):
        by_name.setdefault(name, []).append(index)
    for (system, checkpoint), indices in by_name.items():
        rows = np.asarray(indices)
        for count in np.unique(shots[rows]).tolist():
            of_count = rows[shots[rows] == count]
            number = np.bincount(row[of_count], minlength=len(ids))
            means = np.bincount(row[of_count], weights=accuracy[of_count], minlength=len(ids)) / number
            target = baselines.setdefault(system, {}) if checkpoint is None else checkpoints.setdefault(checkpoint, {})
            target[count] = means
    return PerQuery([ItemId(int(one)) for one in ids], images, baselines, checkpoints)


def _array(values: object, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)
