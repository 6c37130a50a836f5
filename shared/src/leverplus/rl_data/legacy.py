"""Legacy InfoScore files: `id_list` of [demonstrations…, query] and `score_list`, what the first demonstration gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from leverplus.rl_data.validation import Place, describe


def is_legacy(entry: Mapping[str, Any]) -> bool:
    return "id_list" in entry and "score_list" in entry


def from_legacy(place: Place, entry: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """The entry with `pointer_candidates` instead, or InvalidRlData; `sign` is -1 where the lowest scores were the best."""
    ids, scores = (_list(place, entry, name) for name in ("id_list", "score_list"))
    if len(ids) != len(scores):
        raise place.refuse("score_list", f"has {len(scores)} scores for {len(ids)} lists of ids")
    rows: list[dict[str, Any]] = []
    for index, (row, score) in enumerate(zip(ids, scores, strict=True)):
        if not isinstance(row, list) or not row or str(row[-1]) != place.query:
            raise place.refuse(
                f"id_list[{index}]", f"is {describe(row)}, expected ids of which the last is the query, {place.query}"
            )
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise place.refuse(f"score_list[{index}]", f"is {describe(score)}, expected a number")
        rows.append({"pointer": row[:-1], "info_score": sign * score})
    rest = {name: value for name, value in entry.items() if name not in ("id_list", "score_list")}
    return {**rest, "pointer_candidates": rows}


def _list(place: Place, entry: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(values := entry[name], list):
        raise place.refuse(name, f"is {describe(values)}, expected a list")
    return cast("list[Any]", values)
