"""What a record must be before it is used or written; every refusal names file, query and field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leverplus.dataset import Dataset, Item
from leverplus.errors import Conflict, IdOutsidePool, InvalidPointer, InvalidRlData
from leverplus.ids import ItemId, Pointer, check_pointer
from leverplus.rl_data.records import CANDIDATE_FIELDS, SCORE_FIELDS, Candidate, QueryRecord

MAX_ITEM_ID = 2**31 - 1
MODES = ("file", "fallback", "error", "unknown")


class Place(NamedTuple):
    """Where in a file something stands: the query by its id, or by its line where it has none."""

    file: Path
    query: str

    def refuse(self, field: str, reason: str) -> InvalidRlData:
        return InvalidRlData(file=str(self.file), query=self.query, field=field, reason=reason)


def refuse_file(file: Path, reason: str) -> InvalidRlData:
    """An error that concerns no single query."""
    return InvalidRlData(f"{file}: {reason}", file=str(file), reason=reason)


def _number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"is {describe(value)}, expected a number or null"
        if not math.isfinite(value):
            return f"is {value}, expected a finite number, or null where it is unknown"
        if not low <= value <= high or (above and value == low):
            return f"is {value}, expected a number {f'above {low:g}' if above else f'from {low:g}'}" + (
                f" to {high:g}" if high < math.inf else ""
            )
        return None

    return check


def _integer(low: int, high: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"is {describe(value)}, expected an integer"
        return None if low <= value <= high else f"is {value}, expected {low} to {high}"

    return check


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else f"is {describe(value)}, expected a text or null"


def _mode(value: Any) -> str | None:
    return None if value in MODES else f"is {value!r}, expected one of {', '.join(MODES)}"


# gt_prob sums up to ten answers' probabilities, each a mean per token: it can pass 1, not 10.
_RULES: dict[str, Callable[[Any], str | None]] = {
    "gen_method": _text,
    "beam_rank": _integer(0, MAX_ITEM_ID),
    "beam_score": _number(),
    "logprob_score": _number(),
    "temperature": _number(0),
    "propensity": _number(0, 1, above=True),
    "count": _integer(1, MAX_ITEM_ID),
    "vqa_raw_generation": _text,
    "vqa_pred_answer": _text,
    "vqa_correct": _integer(0, 1),
    "vqa_acc_score": _number(0, 1),
    "vqa_gt_prob": _number(0, 10),
    "vqa_rel_score": _number(0, 1),
    "info_score": _number(),
    "vqa_eval_mode": _mode,
}
_NEVER_NULL = ("count", "vqa_eval_mode")


def describe(value: Any) -> str:
    """A value in an error message, cut short."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '…'} ({type(value).__name__})"


def check_values(place: Place, prefix: str, values: Mapping[str, Any]) -> None:
    """Refuses a candidate's field that has the wrong type, is not finite, or is out of range. Names not known here pass."""
    for name, value in values.items():
        if value is None and name not in _NEVER_NULL:
            continue
        if name in _RULES and (reason := _RULES[name](value)):
            raise place.refuse(f"{prefix}.{name}", reason)


def check_ids(place: Place, field: str, values: Any) -> tuple[ItemId, ...]:
    """A list of item ids, as far as that can be told without the dataset."""
    if not isinstance(values, list | tuple):
        raise place.refuse(field, f"is {describe(values)}, expected a list of item ids")
    if set(map(type, values)) <= {int} and (not values or (min(values) >= 0 and max(values) <= MAX_ITEM_ID)):
        return tuple(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise place.refuse(field, f"holds {describe(value)}, expected item ids, which are integers")
        if not 0 <= value <= MAX_ITEM_ID:
            raise place.refuse(field, f"holds {value}, expected item ids from 0 to {MAX_ITEM_ID}")
    return tuple(ItemId(value) for value in values)


def check_record(record: QueryRecord, file: Path, dataset: Dataset | None = None) -> None:
    """Refuses a record that no one may write or train on.

    InvalidRlData for what is wrong in itself: values, a pointer that is too long, repeats an item, holds the query or an id
    outside `dataset`, another question or image than `dataset` has under that id, a pool with an id twice, an "error" with a
    score, a repeated pointer. IdOutsidePool for a pointer to an
    item that the pool does not hold.
    """
    place = Place(file, str(record.query_id))
    seen: set[Pointer] = set()
    for index, candidate in enumerate(record.candidates):
        prefix = f"pointer_candidates[{index}]"
        check_values(place, prefix, {name: getattr(candidate, name) for name in CANDIDATE_FIELDS})
        check_demonstrations(place, f"{prefix}.pointer", candidate.pointer, record.query_id, MAX_ITEM_ID + 1)
        if candidate.pointer in seen:
            raise place.refuse(
                f"{prefix}.pointer", f"{list(candidate.pointer)} stands there twice; merge_duplicates() joins rows"
            )
        seen.add(candidate.pointer)
        _check_error_has_no_score(place, prefix, candidate)
    check_ids_known(record, file, dataset)


def check_ids_known(record: QueryRecord, file: Path, dataset: Dataset | None = None) -> None:
    """The part of `check_record` about the dataset and the pool: what reading the candidates one by one cannot tell."""
    place = Place(file, str(record.query_id))
    item_count = MAX_ITEM_ID + 1 if dataset is None else len(dataset)
    check_ids(place, "query_id", [record.query_id])
    if record.query_id >= item_count:
        raise place.refuse("query_id", f"is outside the dataset, which has ids 0 to {item_count - 1}")
    if dataset is not None:
        _check_question(place, record.query, dataset.item(record.query_id), dataset.name)
    pool = _check_pool(place, record.candidate_pool_ids, item_count)
    for index, candidate in enumerate(record.candidates):
        if not pool.issuperset(candidate.pointer):
            check_in_pool(place, f"pointer_candidates[{index}].pointer", candidate.pointer, pool)


def check_demonstrations(place: Place, field: str, pointer: Pointer, query_id: int, item_count: int) -> None:
    """Refuses a pointer that breaks the rules of `leverplus.ids.check_pointer`."""
    check_ids(place, field, pointer)
    try:
        check_pointer(pointer, query_id=query_id, item_count=item_count)
    except InvalidPointer as exc:
        raise place.refuse(field, f"{list(pointer)}: {exc.context['reason']}") from exc


def check_in_pool(place: Place, field: str, pointer: Pointer, pool: frozenset[ItemId]) -> None:
    """Raises IdOutsidePool for the first id of `pointer` that `pool` lacks."""
    for item_id in pointer:
        if item_id not in pool:
            raise IdOutsidePool(file=str(place.file), query=place.query, field=field, item_id=item_id, pool_size=len(pool))


def conflict_in(place: Place, exc: Conflict) -> InvalidRlData:
    """A contradiction between two rows of one pointer, told with its place."""
    return place.refuse(f"pointer_candidates[].{exc.context['field']}", str(exc))


def _check_question(place: Place, query: Mapping[str, Any], item: Item, dataset: str) -> None:
    """Refuses a query whose own ids are those of another item: then the item ids of the whole file may be shifted."""
    # Importers put the split before a question id that several splits have.
    known = {"question_id": (item.question_id, item.question_id.removeprefix(f"{item.split}:")), "image_id": (item.image_id,)}
    for field, ids in known.items():
        stated = query.get(field)
        if stated is not None and str(stated) not in ids:
            raise place.refuse(
                f"query.{field}",
                f"is {describe(stated)}, but item {item.item_id} of dataset {dataset!r} has {ids[0]!r}; the ids may be shifted: "
                "the reference counts inside its train split, so import the dataset with train first, from the same file",
            )


def _check_pool(place: Place, pool_ids: tuple[ItemId, ...], item_count: int) -> frozenset[ItemId]:
    check_ids(place, "candidate_pool_ids", pool_ids)
    pool = frozenset(pool_ids)
    if len(pool) != len(pool_ids):
        twice = next(item_id for index, item_id in enumerate(pool_ids) if item_id in pool_ids[:index])
        raise place.refuse("candidate_pool_ids", f"holds item {twice} twice")
    if pool and max(pool) >= item_count:
        raise place.refuse("candidate_pool_ids", f"item {max(pool)} is outside the dataset, which has ids 0 to {item_count - 1}")
    return pool


def _check_error_has_no_score(place: Place, prefix: str, candidate: Candidate) -> None:
    if candidate.vqa_eval_mode != "error":
        return
    for name in SCORE_FIELDS:
        if (value := getattr(candidate, name)) is not None:
            raise place.refuse(f"{prefix}.{name}", f"is {value} although vqa_eval_mode is 'error'; what is unknown is null")
