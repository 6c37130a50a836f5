"""Scored pointers as values, and the merging of pointers that were tried more than once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from leverplus.errors import Conflict
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId, Pointer

EvalMode = Literal["file", "fallback", "error", "unknown"]
PoolSource = Literal["file", "from_pointers"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One pointer, how it was found, and what the VLM's answer with it was worth. None: unknown.

    `vqa_eval_mode` says how the scores were obtained: "file" by the metric over ten annotators, "fallback" by comparing
    strings, "error" not at all (then no score is stated), "unknown" where an old file does not say.
    `propensity` is the pointer's probability under the stated logging mixture, in (0, 1], None if it was not drawn;
    `count` is how often it was found.
    """

    pointer: Pointer
    gen_method: str | None
    beam_rank: int | None = None
    beam_score: float | None = None
    logprob_score: float | None = None
    temperature: float | None = None
    propensity: float | None = None
    count: int = 1
    vqa_raw_generation: str | None = None
    vqa_pred_answer: str | None = None
    vqa_correct: int | None = None
    vqa_acc_score: float | None = None
    vqa_gt_prob: float | None = None
    vqa_rel_score: float | None = None
    info_score: float | None = None
    vqa_eval_mode: EvalMode = "unknown"


CANDIDATE_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Candidate))

SCORE_FIELDS = ("vqa_correct", "vqa_acc_score", "vqa_gt_prob", "vqa_rel_score")
"""What the metric says about the generated answer; none of them is known where the metric failed."""

RESULT_FIELDS = ("vqa_raw_generation", "vqa_pred_answer", *SCORE_FIELDS, "info_score")
"""What a pointer leads to, however it was found: two rows of one pointer cannot differ here."""

_SAME_WITHIN = 1e-6
"""Numbers this near are one value that was computed twice; scores are in steps of 0.1 and more, or sums of float32."""


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """A query, its pool in pool order, and its scored pointers.

    `query` holds the question's own fields as the file gave them. `pool_source` is "from_pointers" where the file named no
    pool and the ids of all its pointers stand in for it.
    """

    query_id: ItemId
    query: Mapping[str, Any]
    candidate_pool_ids: tuple[ItemId, ...]
    candidates: tuple[Candidate, ...]
    pool_source: PoolSource = "file"


@dataclass(frozen=True)
class RlData:
    """A whole file. `meta` is its `_meta` without the fingerprint."""

    meta: Mapping[str, Any]
    fingerprint: Fingerprint
    records: list[QueryRecord]


# Which row of a repeated pointer tells how it was found: the more deliberate way first.
_METHODS = ("beam", "answer", "retrieval", "sample", "random")


def merge_duplicates(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """One row for each ordered pointer, in the order of first appearance; (3, 7) and (7, 3) are different pointers.

    Of two rows the one found by beam, then answer, retrieval, sample, random keeps its way of being found, and unknown results
    are filled from the other; numbers that differ by 1e-6 at most are the same. `count` sums the rows that were drawn (have a
    propensity), or all if none was. Raises Conflict with `pointer`, `field`, `values` where results or propensities contradict
    each other.
    """
    rows: dict[Pointer, list[Candidate]] = {}
    for candidate in candidates:
        rows.setdefault(candidate.pointer, []).append(candidate)
    return tuple(same[0] if len(same) == 1 else _merge(same) for same in rows.values())


def without_propensities(candidates: Iterable[Candidate]) -> list[Candidate]:
    """As they are to be where draws of several mixtures lie together: of none of them alone a row is a draw any more."""
    return [one if one.propensity is None else replace(one, propensity=None) for one in candidates]


def _merge(rows: list[Candidate]) -> Candidate:
    kept = min(rows, key=lambda row: _METHODS.index(row.gen_method) if row.gen_method in _METHODS else len(_METHODS))
    merged = {name: _agreed(kept, name, {getattr(row, name) for row in rows} - {None}) for name in RESULT_FIELDS}
    merged["propensity"] = _agreed(kept, "propensity", {row.propensity for row in rows} - {None})
    scored = [row for row in rows if any(getattr(row, name) is not None for name in SCORE_FIELDS)]
    modes = {row.vqa_eval_mode for row in scored or rows} - {"unknown"}
    merged["vqa_eval_mode"] = _agreed(kept, "vqa_eval_mode", modes) or "unknown"
    drawn = [row for row in rows if row.propensity is not None]
    return replace(kept, **merged, count=sum(row.count for row in drawn or rows))


def _agreed(row: Candidate, name: str, known: set[Any]) -> Any:
    if len(known) > 1 and all(isinstance(value, int | float) for value in known) and max(known) - min(known) <= _SAME_WITHIN:
        own = getattr(row, name)
        return min(known) if own is None else own
    if len(known) > 1:
        one, other = sorted(known)[:2]
        raise Conflict(
            f"pointer {list(row.pointer)} stands there twice with different {name}: {one!r} and {other!r}; "
            "score it once more, or delete one of the rows",
            pointer=list(row.pointer),
            field=name,
            values=[one, other],
        )
    return known.pop() if known else None
