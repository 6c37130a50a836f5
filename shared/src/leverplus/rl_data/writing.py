"""Writes RL JSON, in one dialect and two forms, whole or not at all."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from leverplus.errors import Conflict
from leverplus.files import Fence, atomic_file
from leverplus.fingerprint import Fingerprint
from leverplus.rl_data.records import CANDIDATE_FIELDS, QueryRecord, merge_duplicates
from leverplus.rl_data.sources import FORMAT, META, VERSION
from leverplus.rl_data.validation import Place, check_record, conflict_in, refuse_file


def write(
    path: Path | str,
    records: Iterable[QueryRecord],
    *,
    fingerprint: Fingerprint,
    meta: Mapping[str, Any],
    fence: Fence | None = None,
) -> None:
    """Writes the records as they come; the file appears only when all of them have been checked and written.

    NDJSON when the name ends in .ndjson or .jsonl: `_meta` in the first line, then a query a line. Otherwise one JSON object:
    query id -> entry, and `_meta`. Rows of one ordered pointer are merged. An unknown mode is written as null.
    Raises InvalidRlData and IdOutsidePool as `read` does, also for a query that comes twice and for no queries at all.
    """
    path = Path(path)
    if path.suffix in (".ndjson", ".jsonl"):
        write_lines(path, record_lines(path, records), fingerprint=fingerprint, meta=meta, fence=fence)
        return
    head = _head(path, fingerprint, meta)
    with atomic_file(path, fence=fence) as stream:
        stream.write(b"{\n")
        for record in _checked(path, records):
            key = str(record.query_id)
            stream.write(orjson.dumps(key) + b": " + _dump(path, _entry(record), query=key) + b",\n")
        stream.write(orjson.dumps(META) + b": " + _dump(path, head) + b"\n}\n")


def write_lines(
    path: Path, lines: Iterable[bytes], *, fingerprint: Fingerprint, meta: Mapping[str, Any], fence: Fence | None = None
) -> None:
    """`write` of an NDJSON file whose lines are there already, as `record_lines` made them."""
    head = _head(path, fingerprint, meta)
    with atomic_file(path, fence=fence) as stream:
        stream.write(_dump(path, {META: head}) + b"\n")
        stream.writelines(lines)


def record_lines(path: Path, records: Iterable[QueryRecord]) -> Generator[bytes]:
    """A line of NDJSON for each record, checked as `write` does; errors name `path`."""
    for record in _checked(path, records):
        line = {"query_id": record.query_id, **_entry(record)}
        yield _dump(path, line, query=str(record.query_id)) + b"\n"


def _head(path: Path, fingerprint: Fingerprint, meta: Mapping[str, Any]) -> dict[str, Any]:
    if clash := {"format", "version", "fingerprint"} & meta.keys():
        raise refuse_file(
            path, f"meta has the reserved keys {', '.join(sorted(clash))}; the fingerprint is an argument of its own"
        )
    return {**meta, "format": FORMAT, "version": VERSION, "fingerprint": fingerprint.to_json()}


def _checked(path: Path, records: Iterable[QueryRecord]) -> Generator[QueryRecord]:
    seen: set[int] = set()
    for record in records:
        place = Place(path, str(record.query_id))
        if record.query_id in seen:
            raise place.refuse("query_id", "this query comes twice; put its candidates into one record")
        seen.add(record.query_id)
        try:
            merged = replace(record, candidates=merge_duplicates(record.candidates))
        except Conflict as exc:
            raise conflict_in(place, exc) from exc
        check_record(merged, path)
        yield merged
    if not seen:
        raise refuse_file(path, "there are no queries to write")


def _entry(record: QueryRecord) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for candidate in record.candidates:
        row = {name: getattr(candidate, name) for name in CANDIDATE_FIELDS}
        row["vqa_eval_mode"] = None if candidate.vqa_eval_mode == "unknown" else candidate.vqa_eval_mode
        rows.append(row)
    entry: dict[str, Any] = {"query": dict(record.query), "candidate_pool_ids": record.candidate_pool_ids}
    if record.pool_source != "file":
        entry["pool_source"] = record.pool_source
    return {**entry, "pointer_candidates": rows}


def _dump(path: Path, value: Any, *, query: str | None = None) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as exc:
        if query is None:
            raise refuse_file(path, f"{META} cannot be written as JSON: {exc}") from exc
        raise Place(path, query).refuse("query", f"cannot be written as JSON: {exc}") from exc
