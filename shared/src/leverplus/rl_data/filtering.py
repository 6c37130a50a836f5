"""Parts of RL data, and several files as one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from leverplus.errors import Conflict, InvalidInput
from leverplus.ids import ItemId
from leverplus.rl_data.records import Candidate, QueryRecord, RlData, merge_duplicates


def filter_records(
    records: Iterable[QueryRecord],
    *,
    eval_modes: Collection[str] | None = None,
    gen_methods: Collection[str] | None = None,
    shots: Collection[int] | None = None,
    drop_flat: bool = False,
) -> list[QueryRecord]:
    """The candidates that meet every condition (None: no condition), and the queries that still have one.

    `drop_flat` leaves out queries that teach nothing: no two pointers of equal length differ in accuracy. Pools stay whole.
    """

    def meets(candidate: Candidate) -> bool:
        return (
            (eval_modes is None or candidate.vqa_eval_mode in eval_modes)
            and (gen_methods is None or candidate.gen_method in gen_methods)
            and (shots is None or len(candidate.pointer) in shots)
        )

    kept = (replace(record, candidates=tuple(filter(meets, record.candidates))) for record in records)
    return [record for record in kept if record.candidates and not (drop_flat and _is_flat(record))]


def _is_flat(record: QueryRecord) -> bool:
    accuracies: dict[int, set[float]] = {}
    for candidate in record.candidates:
        if candidate.vqa_acc_score is not None:
            accuracies.setdefault(len(candidate.pointer), set()).add(candidate.vqa_acc_score)
    return all(len(values) < 2 for values in accuracies.values())


def merge_files(files: Sequence[tuple[str, RlData]]) -> RlData:
    """Named files as one; a query that stands in several gets the candidates of all, equal pointers merged.

    Raises FingerprintMismatch (also where only one of two files states a part), and Conflict for a query whose pools differ
    or whose equal pointers have different results.
    """
    if not files:
        raise InvalidInput("nothing to merge: name at least one file")
    first_name, first = files[0]
    merged: dict[ItemId, QueryRecord] = {}
    origin: dict[ItemId, str] = {}
    for name, data in files:
        first.fingerprint.require_same(data.fingerprint, subject=name)
        data.fingerprint.require_same(first.fingerprint, subject=first_name)
        for record in data.records:
            other = merged.setdefault(record.query_id, record)
            seen_in = origin.setdefault(record.query_id, name)
            if other is record:
                continue
            if other.candidate_pool_ids != record.candidate_pool_ids:
                raise Conflict(
                    f"query {record.query_id} has one pool in {seen_in} ({len(other.candidate_pool_ids)} ids) and another "
                    f"in {name} ({len(record.candidate_pool_ids)} ids); only files of one pool policy can be merged"
                )
            merged[record.query_id] = replace(other, candidates=merge_duplicates([*other.candidates, *record.candidates]))
    meta = {"merged_from": [{"file": name, "meta": dict(data.meta)} for name, data in files]}
    return RlData(meta, first.fingerprint, [merged[query_id] for query_id in sorted(merged)])
