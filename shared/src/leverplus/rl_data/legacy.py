"""Legacy InfoScore files: `id_list` of [demonstrations…, query] and `score_list`, what the first demonstration gains.

Such a file does not say whether a higher or a lower score is the better one: whoever reads it has to. What becomes of it is
`info_score`, of which higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from leverplus.rl_data.validation import Place, describe

InfoScoreSign = Literal["higher", "lower"]
"""Which InfoScores are the better ones in a legacy file."""


def is_legacy(entry: Mapping[str, Any]) -> bool:
    return "id_list" in entry and "score_list" in entry


def from_legacy(place: Place, entry: Mapping[str, Any], better: InfoScoreSign) -> dict[str, Any]:
    """The entry with `pointer_candidates` instead, or InvalidRlData; scores of which lower are `better` change their sign."""
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
        rows.append({"pointer": row[:-1], "info_score": score if better == "higher" else -score})
    rest = {name: value for name, value in entry.items() if name not in ("id_list", "score_list")}
    return {**rest, "pointer_candidates": rows}


def _list(place: Place, entry: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(values := entry[name], list):
        raise place.refuse(name, f"is {describe(values)}, expected a list")
    return cast("list[Any]", values)
