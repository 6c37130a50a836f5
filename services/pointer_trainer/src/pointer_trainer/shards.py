"""A generation's queries in shards: each a file of scored queries that is whole or not there, and is never made again.

A shard holds `shard_queries` of a job's queries, in their order, a line each as in RL data, and in a last line what is to be
known about them. The RL data are the lines of all shards, one behind the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from leverplus.errors import InvalidConfig, InvalidRlData
from leverplus.files import Fence, atomic_file
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from pointer_trainer.children import LARGEST_FAMILY
from pointer_trainer.scored_queries import ModeCounts

_TAIL = "_shard"
_TAIL_LIMIT = 64 * 1024


def shard_count(queries: int, size: int) -> int:
    """How many shards of `size` so many queries make. InvalidConfig where they are more than a job may have children."""
    count = -(-queries // size)
    if count > LARGEST_FAMILY:
        least = -(-queries // LARGEST_FAMILY)
        reason = f"{size} makes {count} shards of {queries} queries, at most {LARGEST_FAMILY}; ask for {least} or more"
        raise InvalidConfig(field="shard_queries", reason=reason)
    return count


@dataclass(frozen=True)
class Shard:
    """One of a job's shards; `number` counts from 1."""

    number: int
    path: Path
    query_ids: Sequence[ItemId]

    @property
    def is_done(self) -> bool:
        return self.path.is_file()


@dataclass(frozen=True)
class ShardTail:
    """The last line: queries written and such without a candidate, scores by how they were obtained, and the fingerprint, whose
    generation and metric are None where nothing was scored."""

    queries: int
    without_candidates: int
    scores: ModeCounts
    fingerprint: Fingerprint


def cut(query_ids: Sequence[ItemId], size: int, folder: Path) -> list[Shard]:
    """The shards of a generation's queries, whose files are in `folder`."""
    return [
        Shard(number, folder / f"{number:05}.ndjson", query_ids[start : start + size])
        for number, start in enumerate(range(0, len(query_ids), size), start=1)
    ]


def write(shard: Shard, lines: Iterable[bytes], tail: Callable[[], ShardTail], *, fence: Fence) -> None:
    """Writes the queries' lines, and what `tail` says when all of them are there."""
    with atomic_file(shard.path, fence=fence) as stream:
        stream.writelines(lines)
        stream.write(orjson.dumps({_TAIL: _tail_to_json(tail())}) + b"\n")


def read_tail(shard: Shard) -> ShardTail:
    """What a shard that is done says of itself."""
    with shard.path.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_LIMIT))
        last = stream.read().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        value = orjson.loads(last)[_TAIL]
        return ShardTail(
            value["queries"],
            value["without_candidates"],
            ModeCounts(**value["scores"]),
            Fingerprint.from_json(value["fingerprint"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
        raise _damaged(shard, "the last line does not say what the shard holds") from exc


def lines(shard: Shard, tail: ShardTail) -> Generator[bytes]:
    """The queries' lines of a shard that is done."""
    with shard.path.open("rb") as stream:
        for _ in range(tail.queries):
            if not (line := stream.readline()).startswith(b'{"query_id"'):
                raise _damaged(shard, f"its last line says {tail.queries} queries, and there are fewer")
            yield line


def _damaged(shard: Shard, reason: str) -> InvalidRlData:
    return InvalidRlData(
        file=shard.path, query=None, field=_TAIL, reason=f"{reason}; delete the file and resume the job, which makes it anew"
    )


def _tail_to_json(tail: ShardTail) -> dict[str, Any]:
    counts = tail.scores
    return {
        "queries": tail.queries,
        "without_candidates": tail.without_candidates,
        "scores": {"file": counts.file, "fallback": counts.fallback, "error": counts.error, "cached": counts.cached},
        "fingerprint": tail.fingerprint.to_json(),
    }
