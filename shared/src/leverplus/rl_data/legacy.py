"""The reference's InfoScore files: {"id_list": [[item id, …, query id], …], "score_list": [float, …]} for each query.

Such a file does not say whether a higher or a lower score is the better one, and the reference's code took the lowest as best for
one VLM: whoever reads it has to say so. What becomes of it is `info_score`, of which higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from leverplus.rl_data.validation import Place, describe

InfoScoreSign = Literal["higher", "lower"]
"""Which InfoScores are the better ones in a legacy file."""


def is_legacy(entry: Mapping[str, Any]) -> bool:
    return "id_list" in entry and "score_list" in entry


def modern_entry(place: Place, entry: Mapping[str, Any], sign: InfoScoreSign | None) -> dict[str, Any]:
    """The entry with pointer_candidates in place of the two lists: pointer and info_score, turned round where lower is better.

    InvalidRlData without a sign, for lists of different length, and where a list of ids does not end with the query's own.
    """
    if sign is None:
        raise place.refuse(
            "id_list",
            "this is a legacy InfoScore file (id_list and score_list), which does not say which scores are the better ones; "
            "state it: `leverplus rl convert --info-score higher` or `lower`, `rl_data.read(path, info_score=…)`",
        )
    lists, scores = entry["id_list"], entry["score_list"]
    if not isinstance(lists, list) or not isinstance(scores, list) or len(lists) != len(scores):
        raise place.refuse(
            "score_list", f"is {describe(scores)}, expected as many numbers as id_list has lists: {describe(lists)}"
        )
    rows: list[dict[str, Any]] = []
    for index, (ids, score) in enumerate(zip(lists, scores, strict=True)):
        if not isinstance(ids, list) or not ids or str(ids[-1]) != place.query:
            raise place.refuse(f"id_list[{index}]", f"is {describe(ids)}, expected item ids of which the last is the query's own")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise place.refuse(f"score_list[{index}]", f"is {describe(score)}, expected a finite number")
        rows.append({"pointer": ids[:-1], "info_score": score if sign == "higher" else -score})
    kept = {name: value for name, value in entry.items() if name not in ("id_list", "score_list")}
    return {**kept, "pointer_candidates": rows}
