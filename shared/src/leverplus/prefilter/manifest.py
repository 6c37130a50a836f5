"""`index.json` of a prefilter: what it was made from, how it searches, and what was measured of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from leverplus.checkpoints import CheckpointInfo
from leverplus.data_root import DataRoot
from leverplus.embeddings import EmbeddingManifest
from leverplus.errors import FingerprintMismatch, InvalidConfig, InvalidIndex, NotFound
from leverplus.fingerprint import digest
from leverplus.pools import Ids, PoolPolicy

FORMAT = "leverplus-index-1"
KEYS_FILE = "keys.faiss"
GROUPS_FILE = "groups.safetensors"
MANIFEST_FILE = "index.json"

_WHOLE = ("all", "from_pointers")


@dataclass(frozen=True)
class Sources:
    """What an index holds for: hashes of the checkpoint's weights, of the dataset's items, of the very vectors, and of the
    candidates' ids."""

    checkpoint: str
    checkpoint_sha256: str
    dataset: str
    dataset_sha256: str
    embeddings_sha256: str
    candidates: int
    candidates_sha256: str

    @classmethod
    def found(cls, info: CheckpointInfo, embeddings: EmbeddingManifest, candidates: Ids) -> Sources:
        """Of what lies here."""
        return cls(
            info.checkpoint_id,
            info.model_sha256,
            info.dataset,
            embeddings.dataset_sha256,
            embeddings.sha256,
            len(candidates),
            digest(candidates),
        )


@dataclass(frozen=True)
class Measured:
    """Against the exact choice, over `queries` held-out queries of `split`, `shots` demonstrations each, greedily.

    `recall`: share of queries whose exact pointer's items are all handed on. `agreement`: share that get the exact pointer.
    `accuracy`: VQA accuracy (0 to 1) of both choices and their difference with its paired 95 % interval, None where it was not
    scored.
    """

    split: str
    queries: int
    shots: int
    recall: float
    agreement: float
    accuracy: dict[str, Any] | None = None


@dataclass(frozen=True)
class PrefilterManifest:
    """`lists`: the index's; `probes`: how many of them are searched. `handed_on`: candidates that the selector ranks. `groups`:
    means of candidates that its attention reads instead of the pool. `created_at`: ISO 8601, UTC."""

    name: str
    format: str
    sources: Sources
    lists: int
    probes: int
    handed_on: int
    groups: int
    keys_sha256: str
    groups_sha256: str
    measured: Measured
    faiss: str
    created_at: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def require_sources(self, found: Sources) -> None:
        """FingerprintMismatch naming each field in which what lies here departs from what the index was made from."""
        want, have = asdict(self.sources), asdict(found)
        differences = {name: (want[name], have[name]) for name in want if want[name] != have[name]}
        if differences:
            subject = f"what lies here for prefilter {self.name!r} (make it anew with `leverplus index`)"
            raise FingerprintMismatch(subject=subject, differences=differences)


def require_whole(info: CheckpointInfo) -> PoolPolicy:
    """The checkpoint's pool policy; InvalidConfig unless its pools are all of the candidates, for which an index can be made."""
    policy = PoolPolicy.from_json(info.pool_policy)
    if policy.sampler not in _WHOLE:
        reason = (
            f"{info.checkpoint_id} chooses from {policy.k} items (sampler {policy.sampler!r}), which are ranked exactly in less "
            f"time than an index is asked; a prefilter is for pools of all candidates ({', '.join(_WHOLE)})"
        )
        raise InvalidConfig(field="checkpoint", reason=reason)
    return policy


def list_prefilters(root: DataRoot, checkpoint_id: str) -> list[str]:
    """Names of the checkpoint's prefilters."""
    folder = root.checkpoint(checkpoint_id)
    prefix = root.prefilter(checkpoint_id, "x").name[:-1]
    return sorted(path.parent.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*/{MANIFEST_FILE}"))


def read_prefilter_manifest(root: DataRoot, checkpoint_id: str, name: str) -> PrefilterManifest:
    """NotFound naming those that there are; InvalidIndex for a file that is no manifest."""
    path = root.prefilter(checkpoint_id, name) / MANIFEST_FILE
    try:
        value = orjson.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise InvalidIndex(path=path, reason=f"format is {value['format']!r}, expected {FORMAT!r}")
        value["sources"] = Sources(**value["sources"])
        value["measured"] = Measured(**value["measured"])
        manifest = PrefilterManifest(**value)
    except FileNotFoundError as exc:
        there = ", ".join(list_prefilters(root, checkpoint_id)) or "none"
        hint = f"checkpoint {checkpoint_id} has {there}; `leverplus index` makes one, and without `prefilter` the choice is exact"
        raise NotFound(what="prefilter", name=name, hint=hint) from exc
    except (orjson.JSONDecodeError, TypeError, KeyError) as exc:
        raise InvalidIndex(path=path, reason=f"not a manifest of an index: {exc}; make it anew") from exc
    for field in fields(PrefilterManifest):
        if field.type == "int" and not (type(number := getattr(manifest, field.name)) is int and number >= 1):
            raise InvalidIndex(path=path, reason=f"field {field.name!r} is {number!r}, expected a whole number above 0")
    return manifest
