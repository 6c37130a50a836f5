"""The four families of questions, what is true of each item, and which demonstrations give a query's answer away.

- naming: "In Kasu, what is this colour called?" Only an item of the same language, the same question and the same value tells.
- pair: "In Kasu, name the colour and the shape." The words are joined forms, which only items of this question show: one item
  of the same colour and one of the same shape complete each other, or one of both.
- operator: "What is 2 ? 2?" The frame stands for an operation. Items of the same frame tell it as far as their numbers do:
  2 ? 2 = 4 may be a sum or a product.
- plain: the naming and pair questions in English, which need no demonstration.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from leverplus.dataset.invented_words.scenes import Frame
from leverplus.dataset.invented_words.words import ENGLISH, Column
from leverplus.errors import InvalidDataset, NotFound
from leverplus.ids import ItemId

Family = Literal["naming", "pair", "operator", "plain"]
Asked = Literal["colour", "shape", "pair", "operation"]
Operation = Literal["plus", "minus", "times"]
FAMILIES: tuple[Family, ...] = get_args(Family)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

QUESTIONS: dict[Asked, str] = {
    "colour": "In {language}, what is this colour called?",
    "shape": "In {language}, what is this shape called?",
    "pair": "In {language}, name the colour and the shape.",
    "operation": "What is {first} ? {second}?",
}
ASKED_COLUMNS: dict[Asked, tuple[Column, ...]] = {
    "colour": ("colour",),
    "shape": ("shape",),
    "pair": ("joined colour", "joined shape"),
    "operation": (),
}
OPERANDS = tuple((a, b) for a in range(10) for b in range(a + 1) if a + b <= 9 and a * b <= 9)
"""Pairs of digits whose sum, difference and product are digits: 22."""

Fact = tuple[str, str, str]
"""A language, one of its columns, and a value: what one word of an answer tells."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What is true of an item. `language` is None and `operands` are given exactly for the family operator.

    `texture`, `centre` (column, row) and `radius` in pixels describe what does not matter.
    """

    item_id: ItemId
    family: Family
    asked: Asked
    language: str | None
    colour: str
    shape: str
    frame: Frame
    operands: tuple[int, int] | None
    operation: Operation | None
    texture: str
    centre: tuple[float, float]
    radius: float

    @property
    def question(self) -> str:
        first, second = self.operands or (None, None)
        return QUESTIONS[self.asked].format(language=self.language, first=first, second=second)

    def value(self, column: Column) -> str:
        return self.colour if column in ("colour", "joined colour") else self.shape

    @property
    def facts(self) -> frozenset[Fact]:
        """What the item tells as a demonstration, which is what it needs as a query; nothing for operator and plain."""
        if self.language is None or self.language == ENGLISH:
            return frozenset()
        return frozenset((self.language, column, self.value(column)) for column in ASKED_COLUMNS[self.asked])


def apply(operation: Operation, operands: tuple[int, int]) -> int:
    """The larger operand stands first, so a difference is never negative."""
    first, second = operands
    match operation:
        case "plus":
            return first + second
        case "minus":
            return first - second
        case "times":
            return first * second


def possible_operations(frame: Frame, demonstrations: Iterable[Structure]) -> tuple[Operation, ...]:
    """The operations that fit all demonstrations of this frame."""
    seen = [
        (shown.operands, apply(shown.operation, shown.operands))
        for shown in demonstrations
        if shown.operands is not None and shown.operation is not None and shown.frame == frame
    ]
    return tuple(one for one in OPERATIONS if all(apply(one, operands) == result for operands, result in seen))


def suffices(query: Structure, demonstrations: Sequence[Structure]) -> bool:
    """Whether the demonstrations fix the query's answer: every word that it needs, or its number."""
    if query.operands is not None:
        fitting = possible_operations(query.frame, demonstrations)
        return len({apply(operation, query.operands) for operation in fitting}) == 1
    told = {fact for shown in demonstrations for fact in shown.facts}
    return query.facts <= told


def bears_on(query: Structure, shown: Structure) -> bool:
    """Whether the demonstration tells something that the query needs."""
    if query.operands is not None:
        return shown.operands is not None and shown.frame == query.frame
    return bool(query.facts & shown.facts)


def sufficient_pointer(query: Structure, pool: Sequence[Structure], shots: int) -> tuple[ItemId, ...] | None:
    """A pointer of exactly `shots` items of the pool that suffices, None where there is none: the structural oracle.

    The fewest items that suffice, the first such set in pool order, stand last. Before them come others that bear on the query,
    then any. The query must not be in its pool.
    """
    bearing = [shown for shown in pool if bears_on(query, shown)]
    for size in range(min(shots, len(bearing)) + 1):
        for chosen in combinations(bearing, size):
            if suffices(query, chosen):
                return _filled(chosen, [*bearing, *pool], shots)
    return None


def _filled(chosen: tuple[Structure, ...], others: Sequence[Structure], shots: int) -> tuple[ItemId, ...] | None:
    ids = [shown.item_id for shown in chosen]
    more = [one for one in dict.fromkeys(shown.item_id for shown in others) if one not in ids]
    filled = (*more[: shots - len(ids)], *ids)
    return filled if len(filled) == shots else None


def structure_path(folder: Path) -> Path:
    return folder / "structure.jsonl"


def structure_line(structure: Structure) -> bytes:
    """One line of structure.jsonl."""
    return orjson.dumps(asdict(structure), option=orjson.OPT_APPEND_NEWLINE)


def read_structures(folder: Path) -> list[Structure]:
    """Line i describes ItemId i. NotFound where the dataset was not generated here, InvalidDataset naming a broken line."""
    path = structure_path(folder)
    if not path.is_file():
        hint = "only a dataset made by `leverplus import invented-words` has one"
        raise NotFound(what="structure file", name=str(path), hint=hint)
    structures: list[Structure] = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            structures.append(_structure(orjson.loads(line)))
        except (orjson.JSONDecodeError, TypeError, KeyError) as exc:
            raise InvalidDataset(path=path, reason=f"line {number + 1}: not an item's structure: {exc}") from exc
    return structures


def _structure(value: dict[str, Any]) -> Structure:
    operands = value.pop("operands")
    centre = tuple(value.pop("centre"))
    return Structure(**value, operands=None if operands is None else tuple(operands), centre=centre)
