"""Reads RL JSON in the dialects that exist, into records that have been checked.

Two dialects of the reference: `pointer` holds item ids; or, where `pointer_global` stands beside it, positions in
`candidate_pool_ids`, and the ids are in `pointer_global`. `pointer_pos` may add the positions to the first. The mode
"vqaEval" is "file". What is stated twice must agree. Legacy InfoScore files are turned into the first dialect by `sources`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from leverplus.dataset import Dataset
from leverplus.errors import Conflict
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.rl_data.legacy import InfoScoreSign, is_legacy
from leverplus.rl_data.records import (
    CANDIDATE_FIELDS,
    SCORE_FIELDS,
    Candidate,
    EvalMode,
    PoolSource,
    QueryRecord,
    RlData,
    merge_duplicates,
)
from leverplus.rl_data.sources import META, Source, open_source
from leverplus.rl_data.validation import (
    MODES,
    Place,
    check_demonstrations,
    check_ids,
    check_ids_known,
    check_values,
    conflict_in,
    describe,
    refuse_file,
)

_log = logging.getLogger(__name__)

_ITEM_ID = re.compile(r"0|[1-9][0-9]{0,9}")
_ENTRY_FIELDS = {"query_id", "query", "candidate_pool_ids", "pool_source", "pointer_candidates", META}
_ROW_FIELDS = {*CANDIDATE_FIELDS, "pointer_global", "pointer_pos", "eval_failed", "eval_split_used"}
_COPIED_FIELDS = tuple(name for name in CANDIDATE_FIELDS if name not in ("pointer", "vqa_eval_mode"))
_RESERVED_META = ("format", "version", "fingerprint")


@dataclass
class Notes:
    """What reading a file came across that its records do not show."""

    rows: int = 0
    merged_rows: int = 0
    scores_of_errors_dropped: int = 0
    ignored_fields: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True)
class RlStream:
    """A file whose records are read as they are asked for, once. `meta` and `fingerprint` as in RlData."""

    meta: Mapping[str, Any]
    fingerprint: Fingerprint
    records: Iterator[QueryRecord]


def read(
    path: Path | str,
    dataset: Dataset | None = None,
    *,
    name: str | None = None,
    info_score: InfoScoreSign | None = None,
) -> RlData:
    """The whole file, every record checked; with `dataset`, ids and the dataset fingerprint are checked against it.

    Raises NotFound, FingerprintMismatch, InvalidRlData and IdOutsidePool; the last two name the file, and query and field
    where one is at fault. Rows of one ordered pointer are merged; scores of rows whose mode is "error" become None. Logs a
    warning where modes are unknown. `name`: what errors call the file, its path otherwise. `info_score` says
    whether higher or lower scores are the better ones in a legacy InfoScore file, which is refused without it; lower ones change
    their sign, and `_meta.info_score_of_legacy_file` of the result keeps what was stated.
    """
    found = stream(path, dataset, name=name, info_score=info_score)
    return RlData(found.meta, found.fingerprint, list(found.records))


def stream(
    path: Path | str,
    dataset: Dataset | None = None,
    *,
    name: str | None = None,
    info_score: InfoScoreSign | None = None,
) -> RlStream:
    """`read` a record at a time, in bounded memory; an error in a later query comes when it is reached."""
    source = open_source(Path(path), None if name is None else Path(name), info_score=info_score)
    records = with_warning_of_unknown(_records(source, dataset, Notes()), source.name)
    return RlStream(file_meta(source), file_fingerprint(source), records)


class IndexedFile:
    """A file whose records are read by query id, each time from disk. `name` is its path."""

    def __init__(self, path: Path) -> None:
        """Reads the file through, for the places of its queries; refuses what `read` refuses, but for single queries' faults."""
        self._source = open_source(path)
        self.name = str(path)
        self.meta, self.fingerprint = file_meta(self._source), file_fingerprint(self._source)
        self._places: dict[ItemId, str | int] = {}
        self._shared_pool: tuple[ItemId, ...] | None = None
        for key, entry, place in self._source.placed_entries():
            query_id = _query_id(Place(self._source.name, key))
            if query_id in self._places:
                raise Place(self._source.name, key).refuse("query_id", "this query stands in the file twice")
            if not self._places and entry.get("candidate_pool_ids") is None:
                self._shared_pool = _pool_from_pointers(self._source)
            self._places[query_id] = place
        if not self._places:
            raise refuse_file(self._source.name, "holds no queries")

    @property
    def query_ids(self) -> KeysView[ItemId]:
        return self._places.keys()

    def record(self, query_id: ItemId) -> QueryRecord:
        """Checked as in `read`."""
        entry = self._source.entry_at(self._places[query_id])
        record = read_entry(Place(self._source.name, str(query_id)), entry, self._shared_pool, Notes())
        check_ids_known(record, self._source.name)
        return record


def read_with_notes(source: Source, notes: Notes) -> Iterator[QueryRecord]:
    """The records of an opened file one at a time, telling `notes` what was merged, dropped and ignored."""
    return _records(source, None, notes)


def file_fingerprint(source: Source) -> Fingerprint:
    """The fingerprint in the file's `_meta`; its parts are None where the file does not say."""
    return Fingerprint.from_json(source.meta.get("fingerprint"))


def file_meta(source: Source) -> dict[str, Any]:
    """The rest of `_meta`."""
    stated = {} if source.info_score is None else {"info_score_of_legacy_file": f"{source.info_score} is better"}
    return {**{key: value for key, value in source.meta.items() if key not in _RESERVED_META}, **stated}


def with_warning_of_unknown(records: Iterable[QueryRecord], name: Path) -> Generator[QueryRecord]:
    """The records, and after the last of them a warning where modes are unknown."""
    unknown = 0
    for record in records:
        unknown += sum(candidate.vqa_eval_mode == "unknown" for candidate in record.candidates)
        yield record
    if unknown:
        _log.warning("%s: %d candidates do not say how they were scored (vqa_eval_mode is unknown)", name, unknown)


def _records(source: Source, dataset: Dataset | None, notes: Notes) -> Generator[QueryRecord]:
    require_dataset(source, dataset)
    entries = source.entries()
    if (first := next(entries, None)) is None:
        raise refuse_file(source.name, "holds no queries")
    shared_pool = None if first[1].get("candidate_pool_ids") is not None else _pool_from_pointers(source)
    seen: set[ItemId] = set()
    for key, entry in chain([first], entries):
        record = read_entry(Place(source.name, key), entry, shared_pool, notes)
        if record.query_id in seen:
            raise Place(source.name, key).refuse("query_id", "this query stands in the file twice")
        seen.add(record.query_id)
        check_ids_known(record, source.name, dataset)
        yield record


def require_dataset(source: Source, dataset: Dataset | None) -> None:
    """FingerprintMismatch for a file that says it is of another dataset."""
    stated = file_fingerprint(source)
    if dataset is not None and stated.dataset is not None:
        own = Fingerprint(dataset=dataset.fingerprint())
        own.require_same(stated, subject=str(source.name), parts=("dataset",))


def _pool_from_pointers(source: Source) -> tuple[ItemId, ...]:
    """The ids of all pointers in ascending order: the pool of a file that names none."""
    ids: set[ItemId] = set()
    for key, entry in source.entries():
        place = Place(source.name, key)
        for index, row in enumerate(rows_of(place, entry)):
            ids.update(ids_of_row(place, f"pointer_candidates[{index}]", row))
    return tuple(sorted(ids))


def read_entry(place: Place, entry: Mapping[str, Any], shared_pool: tuple[ItemId, ...] | None, notes: Notes) -> QueryRecord:
    """One query. `shared_pool` is the pool of a file that names none, None where its queries name theirs."""
    query_id = _query_id(place)
    rows = rows_of(place, entry)
    query = _query(place, entry)
    pool, pool_source = _pool(place, entry, shared_pool)
    candidates = [_candidate(place, index, row, query_id, pool, pool_source, notes) for index, row in enumerate(rows)]
    try:
        merged = merge_duplicates(candidates)
    except Conflict as exc:
        raise conflict_in(place, exc) from exc
    notes.rows += len(rows)
    notes.merged_rows += len(rows) - len(merged)
    notes.ignored_fields.update(name for name in entry if name not in _ENTRY_FIELDS)
    return QueryRecord(query_id, query, pool, merged, pool_source)


def _query_id(place: Place) -> ItemId:
    if not _ITEM_ID.fullmatch(place.query):
        raise place.refuse("query_id", f"is {describe(place.query)}, expected an item id in decimal digits")
    return check_ids(place, "query_id", [int(place.query)])[0]


def rows_of(place: Place, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entry's scored pointers, each an object."""
    if is_legacy(entry):
        raise place.refuse(
            "id_list",
            "this is a legacy InfoScore file (id_list and score_list), which does not say which scores are the better "
            "ones; state it: `--info-score higher` or `lower` of `leverplus rl convert` and `rl upload`, `info_score=` of "
            "POST /rl-data and `rl_data.read`",
        )
    rows = entry.get("pointer_candidates")
    if not isinstance(rows, list):
        found = describe(rows) if "pointer_candidates" in entry else "missing"
        raise place.refuse("pointer_candidates", f"is {found}, expected a list of scored pointers")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise place.refuse(f"pointer_candidates[{index}]", f"is {describe(row)}, expected an object")
    return cast("list[dict[str, Any]]", rows)


def _query(place: Place, entry: Mapping[str, Any]) -> dict[str, Any]:
    query = entry.get("query") or {}
    if not isinstance(query, dict):
        raise place.refuse("query", f"is {describe(query)}, expected an object")
    query = cast("dict[str, Any]", query)
    stated = query.get("query_id")
    if stated is not None and str(stated) != place.query:
        raise place.refuse("query.query_id", f"is {describe(stated)}, but the entry is that of query {place.query}")
    return query


def _pool(
    place: Place, entry: Mapping[str, Any], shared_pool: tuple[ItemId, ...] | None
) -> tuple[tuple[ItemId, ...], PoolSource]:
    stated = entry.get("candidate_pool_ids")
    if shared_pool is None:
        if stated is None:
            raise place.refuse("candidate_pool_ids", "is missing, while the first query of the file has it")
        source = entry.get("pool_source", "file")
        if source not in ("file", "from_pointers"):
            raise place.refuse("pool_source", f"is {describe(source)}, expected 'file' or 'from_pointers'")
        return check_ids(place, "candidate_pool_ids", stated), source
    if stated is not None:
        raise place.refuse("candidate_pool_ids", "is stated here, but missing in the first query of the file")
    return shared_pool, "from_pointers"


def _candidate(
    place: Place,
    index: int,
    row: Mapping[str, Any],
    query_id: ItemId,
    pool: tuple[ItemId, ...],
    pool_source: PoolSource,
    notes: Notes,
) -> Candidate:
    prefix = f"pointer_candidates[{index}]"
    pointer = ids_of_row(place, prefix, row)
    check_demonstrations(place, f"{prefix}.pointer", pointer, query_id, max((query_id, *pointer)) + 1)
    if pool_source == "file":
        _check_positions(place, prefix, row, pointer, pool)
    values = {name: row[name] for name in _COPIED_FIELDS if name in row}
    if values.get("count", 0) is None:
        del values["count"]
    if values.get("vqa_correct") in (0, 1):  # some files write 1.0, or true
        values["vqa_correct"] = int(values["vqa_correct"])
    check_values(place, prefix, values)
    if ignored := row.keys() - _ROW_FIELDS:
        notes.ignored_fields.update(f"pointer_candidates[].{name}" for name in ignored)
    values.setdefault("gen_method", None)
    candidate = Candidate(pointer, **values, vqa_eval_mode=_mode(place, prefix, row))
    if candidate.vqa_eval_mode == "error" and any(getattr(candidate, name) is not None for name in SCORE_FIELDS):
        # The reference writes zeros where its metric failed; a failure says nothing about the answer.
        notes.scores_of_errors_dropped += 1
        candidate = replace(candidate, **dict.fromkeys(SCORE_FIELDS))
    return candidate


def _mode(place: Place, prefix: str, row: Mapping[str, Any]) -> EvalMode:
    mode = row.get("vqa_eval_mode")
    failed = row.get("eval_failed") or False
    if not isinstance(failed, bool):
        raise place.refuse(f"{prefix}.eval_failed", f"is {describe(failed)}, expected true, false or null")
    if mode is None:
        return "error" if failed else "unknown"
    if mode == "vqaEval":
        return "file"
    if mode not in MODES:
        raise place.refuse(f"{prefix}.vqa_eval_mode", f"is {describe(mode)}, expected file, vqaEval, fallback, error or null")
    return mode


def ids_of_row(place: Place, prefix: str, row: Mapping[str, Any]) -> tuple[ItemId, ...]:
    """The item ids of a row's pointer, whichever field holds them."""
    name = "pointer_global" if row.get("pointer_global") is not None else "pointer"
    if name not in row:
        raise place.refuse(f"{prefix}.pointer", "is missing, expected a list of item ids")
    return check_ids(place, f"{prefix}.{name}", row[name])


def _check_positions(
    place: Place, prefix: str, row: Mapping[str, Any], pointer: tuple[ItemId, ...], pool: tuple[ItemId, ...]
) -> None:
    """Positions that the row states beside its item ids must lead to the same items."""
    stated = {"pointer_pos": row.get("pointer_pos")}
    if row.get("pointer_global") is not None:
        stated["pointer"] = row.get("pointer")
    for name, positions in stated.items():
        if positions is None:
            continue
        positions = check_ids(place, f"{prefix}.{name}", positions)
        if len(positions) != len(pointer):
            raise place.refuse(f"{prefix}.{name}", f"has {len(positions)} positions for {len(pointer)} item ids")
        for position, item_id in zip(positions, pointer, strict=True):
            if position >= len(pool):
                raise place.refuse(f"{prefix}.{name}", f"position {position} is outside the pool of {len(pool)}")
            if pool[position] != item_id:
                reason = f"position {position} of candidate_pool_ids is item {pool[position]}, the row says item {item_id}"
                raise place.refuse(f"{prefix}.{name}", reason)
