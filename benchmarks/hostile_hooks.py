"""For schemathesis: names of things that are there, so that requests come past the first refusal. Loaded by hostile_schemas."""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis

_THERE: dict[str, list[Any]] = {
    "dataset": ["questions", "numbers"],
    "checkpoint": ["ckpt-questions"],
    "checkpoint_id": ["ckpt-questions", "ckpt-spare"],
    "rl_data": [["rl-numbers"]],
    "checkpoints": [["ckpt-questions"]],
    "alias": ["production"],
    "split": ["train"],
    "item_id": [0, 7, 63],
    "query_id": [0, 7, 63],
    "question_id": ["q5"],
    "embedding": [[0.5] * 16],
}


def _named(value: Any) -> Any:
    """`value` with three in four of such fields replaced; what is chosen depends on the value alone."""
    if isinstance(value, list):
        return [_named(member) for member in value]
    if not isinstance(value, dict):
        return value
    changed: dict[Any, Any] = {}
    for name, member in value.items():
        there, drawn = _THERE.get(name), zlib.crc32(repr((name, member)).encode("utf-8", "replace"))
        changed[name] = there[drawn // 4 % len(there)] if there and member is not None and drawn % 4 else _named(member)
    return changed


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    return _named(body)


@schemathesis.hook
def map_query(_context: Any, query: Any) -> Any:
    return _named(query)


@schemathesis.hook
def map_path_parameters(_context: Any, parameters: Any) -> Any:
    return _named(parameters)
