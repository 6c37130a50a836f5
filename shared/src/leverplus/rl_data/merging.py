"""Several RL files as one, a query at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leverplus.errors import Conflict, InvalidInput
from leverplus.rl_data.reading import IndexedFile, RlStream
from leverplus.rl_data.records import QueryRecord, merge_duplicates, without_propensities

_MIXTURE = "logging_mixture"


def merge_files(paths: Sequence[Path]) -> RlStream:
    """The files as one, sorted by query id; a query that stands in several gets the candidates of all, equal pointers merged.

    Each file is read through once for the places of its queries, and then query by query: memory holds the places, not the
    scores. What all files state alike in `_meta`, such as the pool policy, stays there; `merged_from` has all they state. Where
    they state different logging mixtures, or only some do, no propensity stays.
    Raises FingerprintMismatch (also where only one of two files states a part), and, as records are read, Conflict for a query
    whose pools differ or whose equal pointers have different results.
    """
    if not paths:
        raise InvalidInput("nothing to merge: name at least one file")
    files = [IndexedFile(path) for path in paths]
    first = files[0]
    for each in files[1:]:
        first.fingerprint.require_same(each.fingerprint, subject=each.name)
        each.fingerprint.require_same(first.fingerprint, subject=first.name)
    shared = {
        name: value
        for name, value in first.meta.items()
        if name != "merged_from" and all(name in each.meta and each.meta[name] == value for each in files)
    }
    origin: list[dict[str, Any]] = [{"file": each.name, "meta": dict(each.meta)} for each in files]
    keep = all(each.meta.get(_MIXTURE) == first.meta.get(_MIXTURE) for each in files)
    return RlStream({**shared, "merged_from": origin}, first.fingerprint, _merged(files, keep))


def _merged(files: Sequence[IndexedFile], keep_propensities: bool) -> Generator[QueryRecord]:
    for query_id in sorted({query_id for each in files for query_id in each.query_ids}):
        holders = [each for each in files if query_id in each.query_ids]
        merged = holders[0].record(query_id)
        if not keep_propensities:
            merged = replace(merged, candidates=tuple(without_propensities(merged.candidates)))
        for each in holders[1:]:
            record = each.record(query_id)
            if merged.candidate_pool_ids != record.candidate_pool_ids:
                raise Conflict(
                    f"query {query_id} has one pool in {holders[0].name} ({len(merged.candidate_pool_ids)} ids) and another "
                    f"in {each.name} ({len(record.candidate_pool_ids)} ids); only files of one pool policy can be merged"
                )
            more = record.candidates if keep_propensities else without_propensities(record.candidates)
            merged = replace(merged, candidates=merge_duplicates([*merged.candidates, *more]))
        yield merged
