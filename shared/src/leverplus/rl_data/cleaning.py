"""Reading a file whose invalid rows are left out and counted, for old files that cannot be mended at their source."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from leverplus.dataset import Dataset
from leverplus.errors import Conflict, IdOutsidePool, InvalidRlData
from leverplus.ids import ItemId, Pointer
from leverplus.rl_data.dropped import Dropped
from leverplus.rl_data.legacy import InfoScoreSign
from leverplus.rl_data.reading import (
    Notes,
    RlStream,
    file_fingerprint,
    file_meta,
    ids_of_row,
    read_entry,
    require_dataset,
    rows_of,
    with_warning_of_unknown,
)
from leverplus.rl_data.records import Candidate, merge_duplicates
from leverplus.rl_data.sources import Source, open_source
from leverplus.rl_data.validation import Place, check_record, conflict_in, refuse_file

_ROWS = "pointer_candidates"


def stream_dropping_invalid(
    path: Path | str, dataset: Dataset | None = None, *, info_score: InfoScoreSign | None = None
) -> tuple[RlStream, Dropped]:
    """`stream` without the candidates and queries that it would refuse, and what they were.

    The file is read through once to count them, and again as the records are taken; memory holds the ids of its queries. (A JSON
    object with NaN or Infinity in it is parsed whole.) A query goes with its fields, its pool, or its last candidate; of rows of
    one pointer that contradict each other all go. Refused as in `read`: what is no JSON (NaN and Infinity apart, which make a
    value invalid), another dataset by its fingerprint, a file with nothing valid in it. `_meta.dropped_as_invalid` of the result
    says what was left out.
    """
    source = open_source(Path(path), non_finite=True, info_score=info_score)
    require_dataset(source, dataset)
    has_pools = any(entry.get("candidate_pool_ids") is not None for _, entry in source.entries())
    dropped = Dropped()
    queries = 0
    offered: set[ItemId] = set()
    for place, entry in _valid_entries(source, has_pools, dataset, dropped):
        queries += 1
        if not has_pools:
            for index, row in enumerate(rows_of(place, entry)):
                offered.update(ids_of_row(place, f"{_ROWS}[{index}]", row))
    if not queries:
        raise refuse_file(source.name, f"no query is valid: {dropped.to_json()['reasons']}")
    shared_pool = None if has_pools else tuple(sorted(offered))
    records = (
        read_entry(place, entry, shared_pool, Notes()) for place, entry in _valid_entries(source, has_pools, dataset, Dropped())
    )
    meta = {**file_meta(source), "dropped_as_invalid": dropped.to_json()}
    return RlStream(meta, file_fingerprint(source), with_warning_of_unknown(records, source.name)), dropped


def _valid_entries(
    source: Source, has_pools: bool, dataset: Dataset | None, dropped: Dropped
) -> Generator[tuple[Place, dict[str, Any]]]:
    """The queries that are kept, each with the rows that are."""
    seen: set[str] = set()
    for key, entry in source.entries():
        place = Place(source.name, key)
        try:
            if key in seen:
                raise place.refuse("query_id", "this query stands in the file twice")
            check_record(read_entry(place, {**entry, _ROWS: []}, None if has_pools else (), Notes()), source.name, dataset)
            rows = _valid_rows(place, entry, has_pools, dataset, dropped)
        except InvalidRlData as exc:
            dropped.queries += 1
            dropped.reasons[_reason(exc)] += 1
        else:
            seen.add(key)
            yield place, {**entry, _ROWS: rows}


def _valid_rows(
    place: Place, entry: Mapping[str, Any], has_pools: bool, dataset: Dataset | None, dropped: Dropped
) -> list[dict[str, Any]]:
    """InvalidRlData where the entry has no list of rows, or had some and none of them is valid."""
    rows = entry.get(_ROWS)
    if not isinstance(rows, list):
        rows = rows_of(place, entry)  # refuses it
    valid: dict[Pointer, list[tuple[Any, Candidate]]] = {}
    for row in rows:
        try:
            candidate = _candidate(place, entry, row, has_pools, dataset)
        except (InvalidRlData, IdOutsidePool) as exc:
            dropped.leave_out(_reason(exc))
        else:
            valid.setdefault(candidate.pointer, []).append((row, candidate))
    kept: list[dict[str, Any]] = []
    for same in valid.values():
        try:
            merge_duplicates(candidate for _, candidate in same)
        except Conflict as exc:
            dropped.leave_out(_reason(conflict_in(place, exc)), len(same))
        else:
            kept += [row for row, _ in same]
    if rows and not kept:
        raise place.refuse(_ROWS, "none of them is valid")
    return kept


def _candidate(place: Place, entry: Mapping[str, Any], row: Any, has_pools: bool, dataset: Dataset | None) -> Candidate:
    """One row, checked by itself; where the file names no pools, it is its own pool."""
    alone = {**entry, _ROWS: [row]}
    pool: tuple[ItemId, ...] | None = None
    if not has_pools:
        pool = tuple(sorted(set(ids_of_row(place, f"{_ROWS}[0]", rows_of(place, alone)[0]))))
    record = read_entry(place, alone, pool, Notes())
    check_record(record, place.file, dataset)
    return record.candidates[0]


def _reason(error: InvalidRlData | IdOutsidePool) -> str:
    """What was wrong, numbers written as N: equal faults of different rows have one reason."""
    place = f"{error.context['file']}: query {error.context['query']}: "
    lists = re.sub(r"\[\d+(, \d+)*\]", "[N]", str(error).removeprefix(place))
    return re.sub(r"(?<!\w)-?\d+(\.\d+)?(e-?\d+)?", "N", lists)
