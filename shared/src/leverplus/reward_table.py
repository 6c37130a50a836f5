"""The rewards of every pointer of length 0, 1 and 2 over each query's pool: with them expectations are exact.

A folder holds table.json and one file a split: uint8 [queries, 1 + K + K(K - 1)] as .npy, compressed with xz. A byte is an index
into the `levels` that table.json names, which are VQA accuracies. Columns stand for positions in the query's pool, whose
policy table.json states: 0 is zero-shot, 1 + i is (i,), and 1 + K + i(K - 1) + (j if j < i else j - 1) is (i, j), j standing
next to the query.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from leverplus.errors import InvalidDataset, InvalidInput, InvalidPointer, NotFound
from leverplus.files import atomic_file, file_sha256
from leverplus.fingerprint import digest

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]

FORMAT = 1
MOST_SHOTS = 2
NONE = -1
"""Fills the places that a shorter pointer lacks in `all_pointers`."""


def pointer_count(pool_size: int, shots: int | None = None) -> int:
    """Pointers of that length over a pool; None: of all lengths together."""
    counts = (1, pool_size, pool_size * (pool_size - 1))
    return sum(counts) if shots is None else counts[_check_shots(shots)]


def columns(pool_size: int, shots: int) -> slice:
    """Where the pointers of that length stand."""
    begin = sum(pointer_count(pool_size, fewer) for fewer in range(_check_shots(shots)))
    return slice(begin, begin + pointer_count(pool_size, shots))


def pointer_index(positions: Sequence[int] | npt.NDArray[np.integer[Any]], pool_size: int) -> int:
    """Column of a pointer; InvalidPointer for more than two positions, one twice, or one outside the pool."""
    positions = [index(position) for position in positions]
    if len(positions) > MOST_SHOTS or len(set(positions)) != len(positions):
        raise InvalidPointer(f"positions {positions}: expected none, one, or two different ones")
    outside = [position for position in positions if not 0 <= position < pool_size]
    if outside:
        raise InvalidPointer(f"positions {positions}: {outside[0]} is outside the pool of {pool_size}")
    match positions:
        case []:
            return 0
        case [only]:
            return 1 + only
        case [first, second]:
            return 1 + pool_size + first * (pool_size - 1) + second - int(second > first)
        case _:
            raise AssertionError(positions)


def all_pointers(pool_size: int) -> Ids:
    """Positions [N, 2] of all pointers in the order of the columns; NONE where there is none."""
    first, second = np.divmod(np.arange(pointer_count(pool_size, 2)), max(pool_size - 1, 1))
    pairs = np.stack([first, second + (second >= first)], axis=1)
    single = np.stack([np.arange(pool_size), np.full(pool_size, NONE)], axis=1)
    return np.concatenate([np.full((1, 2), NONE), single, pairs]).astype(np.int64)


@dataclass(frozen=True)
class RewardTable:
    """One split's rewards. Rows are `query_ids` (ItemIds); `header` is table.json. Rewards lie in 0 to 1."""

    query_ids: Ids
    codes: Codes
    levels: Floats
    pool_size: int
    header: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, split: str) -> RewardTable:
        """Reads and checks a split: NotFound without it, InvalidDataset where a file is not what table.json says."""
        header = _header(folder)
        try:
            found = _split(header, split)
            path = folder / str(found["file"])
            if not path.is_file():
                raise NotFound(what="reward file", name=str(path), hint="table.json names it: the folder is incomplete")
            if (have := file_sha256(path)) != found["sha256"]:
                raise InvalidDataset(path=path, reason=f"its sha256 is {have}, table.json says {found['sha256']}")
            codes: Codes = np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False)
            query_ids, pool_size = np.asarray(found["query_ids"], dtype=np.int64), int(header["pool_size"])
            levels = np.asarray(header["levels"], dtype=np.float64)
        except (KeyError, AttributeError, TypeError, ValueError, lzma.LZMAError) as exc:
            raise InvalidDataset(path=folder / "table.json", reason=f"not the header of a reward table: {exc!r}") from exc
        shape = (len(query_ids), pointer_count(pool_size))
        if codes.dtype != np.uint8 or codes.shape != shape or int(codes.max(initial=0)) >= len(levels):
            reason = f"holds {codes.dtype} {codes.shape}, expected uint8 {shape} below {len(levels)}"
            raise InvalidDataset(path=path, reason=reason)
        return cls(query_ids, codes, levels, pool_size, header)

    @property
    def rewards(self) -> Floats:
        """[Q, N] in the order of the columns; made anew by every call."""
        return self.levels[self.codes]

    def of_length(self, shots: int) -> Floats:
        """[Q, n]: rewards of the pointers of that length, in the order of the columns."""
        return self.levels[self.codes[:, columns(self.pool_size, shots)]]

    def reward(self, query_id: int, positions: Sequence[int] | npt.NDArray[np.integer[Any]]) -> float:
        """Reward of one pointer, as positions in the query's pool; NotFound for a query that is not in the table."""
        rows = np.flatnonzero(self.query_ids == query_id)
        if not rows.size:
            raise NotFound(what="query in the reward table", name=str(query_id), hint=f"it holds {len(self.query_ids)} others")
        return float(self.levels[self.codes[rows[0], pointer_index(positions, self.pool_size)]])

    def require_pools(self, pools: npt.NDArray[np.integer[Any]], split: str) -> None:
        """InvalidInput unless `pools` [Q, K] are the ItemIds that the table was made over, row by row."""
        if pools_digest(pools) != _split(self.header, split)["pools_sha256"]:
            policy = self.header["pool"]
            raise InvalidInput(f"these are not the pools of the reward table's split {split!r}, whose policy is {policy}")

    def zero_shot(self) -> Floats:
        """[Q]"""
        return self.levels[self.codes[:, 0]]

    def random(self, shots: int) -> Floats:
        """[Q]: exact expectation over all pointers of that length, each equally likely."""
        return self.of_length(shots).mean(axis=1)

    def best(self, shots: int) -> Floats:
        """[Q]: the best pointer of that length, found by looking at the answers: it includes lucky hits."""
        return self.of_length(shots).max(axis=1)

    def pairs(self) -> Floats:
        """[Q, K, K]: reward of (i, j), NaN where i = j."""
        size = self.pool_size
        table = np.full((len(self.query_ids), size, size), np.nan)
        table[:, ~np.eye(size, dtype=np.bool_)] = self.of_length(2)
        return table

    def chosen(self, positions: npt.NDArray[np.integer[Any]]) -> Floats:
        """[Q]: rewards of one pointer a query, positions [Q, shots]."""
        if len(positions) != len(self.query_ids):
            raise InvalidInput(f"{len(positions)} pointers for the {len(self.query_ids)} queries of the table")
        found = [pointer_index(row, self.pool_size) for row in positions.tolist()]
        return self.levels[self.codes[np.arange(len(found)), found]]

    def expected(self, probabilities: npt.NDArray[np.floating[Any]], shots: int) -> Floats:
        """[Q]: exact expectation of a policy that takes the pointers of that length with `probabilities` [Q, n].

        InvalidInput for another shape, or a row that is no distribution.
        """
        rewards = self.of_length(shots)
        if probabilities.shape != rewards.shape:
            raise InvalidInput(f"probabilities have shape {probabilities.shape}, expected {rewards.shape}")
        if not np.all(probabilities >= 0) or not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-5):
            raise InvalidInput("probabilities of a query are negative, not finite, or do not sum to 1")
        return np.einsum("qn,qn->q", np.asarray(probabilities, dtype=np.float64), rewards)


def pools_digest(pools: npt.NDArray[np.integer[Any]]) -> str:
    """Hex sha256 of pools [Q, K]."""
    return digest(pools.tolist())


def write_codes(path: Path, codes: Codes) -> str:
    """Writes a split's file, the same bytes for the same codes; its sha256."""
    stream = io.BytesIO()
    np.save(stream, codes, allow_pickle=False)
    with atomic_file(path) as target:
        target.write(lzma.compress(stream.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return file_sha256(path)


def _header(folder: Path) -> dict[str, Any]:
    path = folder / "table.json"
    if not path.is_file():
        raise NotFound(what="reward table", name=str(path), hint="benchmarks/reward_table.py makes one")
    try:
        header: Any = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as exc:
        raise InvalidDataset(path=path, reason=f"not JSON: {exc}") from exc
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InvalidDataset(path=path, reason=f"not the header of a reward table of format {FORMAT}")
    return header


def _split(header: Mapping[str, Any], split: str) -> Any:
    found = header["splits"].get(split)
    if found is None:
        raise NotFound(what="split of the reward table", name=split, hint=f"there are: {', '.join(header['splits'])}")
    return found


def _check_shots(shots: int) -> int:
    if not 0 <= shots <= MOST_SHOTS:
        raise InvalidInput(f"the table holds pointers of length 0 to {MOST_SHOTS}, not {shots}")
    return shots
