"""The grid of a sweep: axes of values over a base, and the training configs that they make."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from leverplus.errors import InvalidConfig, shorten
from leverplus.fingerprint import canonical_json
from pointer_trainer.train_config import TrainConfig, read_train_config, require_json

MAX_CHILDREN = 256


@dataclass(frozen=True)
class GridPoint:
    """One child of a sweep. `number` counts from 1, the last axis fastest; `values`: dotted config name -> value."""

    number: int
    values: Mapping[str, Any]
    config: TrainConfig

    @property
    def label(self) -> str:
        return _label(self.number, self.values)


def axis_names(axis: str) -> list[str]:
    """The dotted names that an axis varies: `seed` one, `reward.hard_weight,reward.soft_weight` two together."""
    return [name.strip() for name in axis.split(",")]


def read_grid(base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> list[GridPoint]:
    """The product of the axes' values laid over `base`, each a whole config.

    InvalidConfig, naming axis or child: an empty grid or one of more than 256, a name twice, a group's value of another length,
    an unknown name, a value that JSON cannot hold or training refuses, two children with one config.
    """
    for name, value in (*base.items(), *((f"axes.{axis}", values) for axis, values in axes.items())):
        require_json(name, value)
    choices = [_choices(axis, values) for axis, values in axes.items()]
    _require_distinct_names([name for axis in axes for name in axis_names(axis)])
    size = math.prod(len(choice) for choice in choices) if choices else 0
    if not 1 <= size <= MAX_CHILDREN:
        shape = " x ".join(str(len(choice)) for choice in choices) or "no axis"
        reason = f"{shape} makes {size} children, expected 1 to {MAX_CHILDREN}; take values away, or make several sweeps"
        raise InvalidConfig(field="axes", reason=reason)
    points: list[GridPoint] = []
    known: dict[bytes, GridPoint] = {}
    for number, chosen in enumerate(itertools.product(*choices), start=1):
        values = {name: value for part in chosen for name, value in part.items()}
        point = _point(number, base, values)
        twin = known.setdefault(canonical_json(point.config.model_dump(mode="json")), point)
        if twin is not point:
            raise InvalidConfig(field="axes", reason=f"{twin.label} and {point.label} are one config; leave one of them out")
        points.append(point)
    return points


def _choices(axis: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    names = axis_names(axis)
    if not all(names):
        raise InvalidConfig(
            field=f"axes.{shorten(axis)}", reason="a name is empty; write dotted config names with commas between"
        )
    if len(names) == 1:
        return [{names[0]: value} for value in values]
    for value in values:
        if not isinstance(value, list) or len(cast("list[Any]", value)) != len(names):
            reason = f"{_shown(value)} is not one value for each of {len(names)} names; write a list of {len(names)}"
            raise InvalidConfig(field=f"axes.{shorten(axis)}", reason=reason)
    return [dict(zip(names, value, strict=True)) for value in values]


def _require_distinct_names(names: Sequence[str]) -> None:
    """`reward` and `reward.mode` are one name twice: the one would undo the other."""
    counts = Counter(names)
    for name in counts:
        tables = itertools.accumulate(name.split(".")[:-1], lambda table, field: f"{table}.{field}")
        outer = next((table for table in tables if table in counts), None)
        if counts[name] > 1 or outer is not None:
            twice = name if outer is None else f"{outer} and {name}"
            raise InvalidConfig(field="axes", reason=f"{shorten(twice)}: varied twice; join the values in one axis")


def _point(number: int, base: Mapping[str, Any], values: Mapping[str, Any]) -> GridPoint:
    config = deepcopy(dict(base))
    for name, value in values.items():
        *tables, field = name.split(".")
        inner = config
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise InvalidConfig(field=f"axes.{shorten(name)}", reason=f"{table} has no fields in it; name it alone")
        inner[field] = deepcopy(value)
    try:
        return GridPoint(number, values, read_train_config(config))
    except InvalidConfig as exc:
        raise InvalidConfig(field=exc.context["field"], reason=f"{exc.context['reason']}, in {_label(number, values)}") from exc


def _label(number: int, values: Mapping[str, Any]) -> str:
    return f"child {number} ({', '.join(f'{name}={_shown(value)}' for name, value in values.items())})"


def _shown(value: Any) -> str:
    return shorten(value if isinstance(value, str) else canonical_json(value).decode(), 100)
