"""The embeddings folder: `embeddings.safetensors` and `manifest.json`.

Row i belongs to ItemId i, for queries and for candidates, which are often the same vectors. A vector is a row of
blocks (the image's, the question's), each of unit length. A row that is not known, because a foreign file held one
split only, is NaN throughout; it is refused where it would be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from leverplus.dataset import Dataset
from leverplus.errors import Conflict, FingerprintMismatch, InvalidConfig, InvalidEmbeddings, NotFound
from leverplus.files import Fence, atomic_folder, file_sha256, remove_folder, write_json

FloatMatrix = npt.NDArray[np.float32]
Source = Literal["encoders", "reference"]

_TENSORS = "embeddings.safetensors"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Block:
    """Columns start to stop (exclusive) of every vector: `image`, `question`, or `joint` where they are not told apart."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class EmbeddingManifest:
    """manifest.json. `encoder` names the encoders and the hashes of their weights, or of the files that were imported.

    `splits` are those whose rows are known, None where all are. `sha256` is of embeddings.safetensors, empty
    until saved; it is no part of the fingerprint, because the last bits of a vector depend on the machine.
    """

    encoder: Mapping[str, Any]
    dataset_sha256: str
    blocks: tuple[Block, ...]
    d_model: int
    count: int
    candidate: Literal["same", "separate"]
    source: Source
    splits: tuple[str, ...] | None = None
    sha256: str = ""

    def require_split(self, split: str) -> None:
        """InvalidEmbeddings unless the rows of this split are known."""
        if self.splits is not None and split not in self.splits:
            raise InvalidEmbeddings(path="embeddings", reason=f"no item of split {split!r} has a vector; {self.way_to_more()}")

    def way_to_more(self) -> str:
        """What to do about a row that is not known."""
        if self.source == "encoders" or self.splits is None:
            return "embed the dataset with `leverplus embed`"
        return (
            f"what was imported covers split {', '.join(self.splits)} only; `leverplus import embeddings` takes the files of "
            "several splits at once, as SPLIT=FOLDER, with --overwrite"
        )


class Embeddings:
    """query [N, d] and candidate [N, d], float32; the same array where the manifest says so."""

    def __init__(self, query: FloatMatrix, candidate: FloatMatrix, manifest: EmbeddingManifest) -> None:
        expected = (manifest.count, manifest.d_model)
        for name, matrix in (("query", query), ("candidate", candidate)):
            if matrix.shape != expected or matrix.dtype != np.float32:
                raise InvalidEmbeddings(
                    path=f"{name} embeddings", reason=f"{matrix.dtype} {matrix.shape}, the manifest says float32 {expected}"
                )
        self.query = query
        self.candidate = candidate
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.count

    @classmethod
    def open(cls, folder: Path, dataset: Dataset | None = None, *, verify: bool = True) -> Embeddings:
        """Reads a folder; with a dataset, refuses embeddings of another one. `verify` compares the file's hash.

        Raises NotFound, InvalidEmbeddings, FingerprintMismatch.
        """
        manifest = read_manifest(folder)
        if dataset is not None and manifest.dataset_sha256 != dataset.info.sha256:
            differences = {"dataset.items_sha256": (dataset.info.sha256, manifest.dataset_sha256)}
            raise FingerprintMismatch(
                subject=f"{folder} (embed dataset {dataset.name!r} again: its embeddings)", differences=differences
            )
        path = folder / _TENSORS
        if not path.is_file():
            raise InvalidEmbeddings(path=path, reason="missing; embed the dataset again")
        if verify and (found := file_sha256(path)) != manifest.sha256:
            raise InvalidEmbeddings(
                path=path, reason=f"sha256 is {found[:12]}…, the manifest says {manifest.sha256[:12]}…; embed again"
            )
        try:
            tensors = _map_tensors(path)
        except SafetensorError as exc:
            raise InvalidEmbeddings(path=path, reason=f"not a safetensors file: {exc}") from exc
        expected = {"query"} if manifest.candidate == "same" else {"query", "candidate"}
        if set(tensors) != expected:
            raise InvalidEmbeddings(path=path, reason=f"holds {sorted(tensors)}, expected {sorted(expected)}")
        return cls(tensors["query"], tensors.get("candidate", tensors["query"]), manifest)

    def save(self, folder: Path, *, overwrite: bool = False, fence: Fence | None = None) -> EmbeddingManifest:
        """Writes the folder whole or not at all and returns the completed manifest; Conflict if it exists."""
        if folder.exists() and not overwrite:
            raise Conflict(f"{folder} already holds embeddings; delete it or ask for it to be overwritten")
        tensors = {"query": self.query}
        if self.manifest.candidate == "separate":
            tensors["candidate"] = self.candidate
        staging = folder.with_name(f".{folder.name}.new") if folder.exists() else folder
        remove_folder(staging)
        with atomic_folder(staging, fence=fence) as target:
            save_file({name: np.ascontiguousarray(matrix) for name, matrix in tensors.items()}, target / _TENSORS)
            complete = replace(self.manifest, sha256=file_sha256(target / _TENSORS))
            write_json(target / _MANIFEST, asdict(complete))
            # safetensors leaves its file to the owner alone; others may read it like its neighbour.
            (target / _TENSORS).chmod((target / _MANIFEST).stat().st_mode)
        if staging != folder:
            remove_folder(folder)
            staging.rename(folder)
        self.manifest = complete
        return complete

    def block(self, name: str) -> slice:
        """Columns of a block; InvalidConfig naming the blocks that there are."""
        return require_block(self.manifest.blocks, name)

    @cached_property
    def known(self) -> npt.NDArray[np.bool_]:
        """[N] whether a row is known."""
        return np.logical_and(np.isfinite(self.query).all(axis=1), np.isfinite(self.candidate).all(axis=1))

    def require(self, item_ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The ids as an array, or InvalidEmbeddings naming the first whose row is absent or unknown."""
        ids = np.asarray(item_ids, dtype=np.int64).reshape(-1)
        outside = (ids < 0) | (ids >= len(self))
        bad = ids[outside]
        if not bad.size:
            # These rows alone: the matrices may be larger than memory.
            bad = ids[~(np.isfinite(self.query[ids]).all(axis=1) & np.isfinite(self.candidate[ids]).all(axis=1))]
        if bad.size:
            raise InvalidEmbeddings(path="embeddings", reason=f"item {bad[0]} has no vector; {self.manifest.way_to_more()}")
        return ids

    def fingerprint(self) -> dict[str, Any]:
        """What the vectors were made from: belongs into the `pool` part of a fingerprint."""
        return manifest_fingerprint(self.manifest)


def manifest_fingerprint(manifest: EmbeddingManifest) -> dict[str, Any]:
    """The fingerprint of the embeddings that a manifest describes, without their vectors."""
    value = asdict(manifest)
    return {name: value[name] for name in ("encoder", "dataset_sha256", "blocks", "d_model", "candidate", "source")}


def block_of(blocks: Sequence[Block], name: str) -> slice | None:
    """Columns of the block of that name, None where there is none."""
    return next((slice(block.start, block.stop) for block in blocks if block.name == name), None)


def require_block(blocks: Sequence[Block], name: str) -> slice:
    """Columns of the block of that name; InvalidConfig naming the blocks that there are."""
    found = block_of(blocks, name)
    if found is None:
        there = ", ".join(block.name for block in blocks)
        raise InvalidConfig(field="block", reason=f"the embeddings have no block {name!r}, only {there}")
    return found


def read_manifest(folder: Path) -> EmbeddingManifest:
    """The manifest of an embeddings folder. Raises NotFound, InvalidEmbeddings."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise NotFound(what="embeddings", name=folder.name, hint=f"{folder} has no {_MANIFEST}; `leverplus embed` makes one")
    try:
        value = orjson.loads(path.read_bytes())
        value["blocks"] = tuple(Block(**block) for block in value["blocks"])
        value["splits"] = None if value["splits"] is None else tuple(value["splits"])
        manifest = EmbeddingManifest(**value)
    except (orjson.JSONDecodeError, TypeError, KeyError) as exc:
        raise InvalidEmbeddings(path=path, reason=f"not a manifest of embeddings: {exc}") from exc
    if manifest.candidate not in ("same", "separate"):
        raise InvalidEmbeddings(path=path, reason=f"candidate is {manifest.candidate!r}, expected 'same' or 'separate'")
    stops = [0, *(block.stop for block in manifest.blocks)]
    if [block.start for block in manifest.blocks] != stops[:-1] or stops[-1] != manifest.d_model:
        raise InvalidEmbeddings(path=path, reason=f"blocks {manifest.blocks} do not cover 0 to d_model {manifest.d_model}")
    return manifest


def _map_tensors(path: Path) -> dict[str, FloatMatrix]:
    """The tensors of a safetensors file as views of it: pages are read when they are touched, and shared by processes.

    Writing to one changes this process's copy only. Raises SafetensorError, InvalidEmbeddings.
    """
    # Opening it checks the header: offsets inside the file, none that overlap.
    with safe_open(path, framework="np"):
        pass
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = orjson.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors: dict[str, FloatMatrix] = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32" or 0 in entry["shape"]:
            raise InvalidEmbeddings(path=path, reason=f"tensor {name} is {entry['dtype']} {entry['shape']}, expected F32")
        start = 8 + length + entry["data_offsets"][0]
        tensors[name] = np.asarray(np.memmap(path, "<f4", mode="c", offset=start, shape=tuple(entry["shape"])))
    return tensors
