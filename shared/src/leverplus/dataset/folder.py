"""The dataset folder: `dataset.json`, `items.jsonl`, and images below the folder.

An item's id is its line in items.jsonl, counted from 0 over all splits. The dataset's hash is over items.jsonl as it
lies on disk, so it also fixes the order and the split of every item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import orjson

from leverplus.errors import InvalidDataset, NotFound, shorten
from leverplus.files import atomic_file, file_sha256, write_json
from leverplus.ids import ItemId

AnswersSource = Literal["human", "replicated", "simulated"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question about one image.

    `answer` is what a demonstration shows; `answers` are the annotators' (ten, fewer, or none where unknown).
    `image` is a path below the dataset folder, None in a dataset imported without images.
    """

    item_id: ItemId
    split: str
    image: str | None
    image_id: str
    question_id: str
    question: str
    answer: str | None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """dataset.json. `answers_source` is `replicated` where one answer stands in for ten annotators, `simulated` where all are
    drawn by a generator."""

    name: str
    version: str
    licence: str
    answers_source: AnswersSource
    splits: dict[str, int] = field(default_factory=dict[str, int])
    sha256: str = ""


class Dataset:
    """A dataset folder, read once and kept in memory; images stay on disk."""

    def __init__(self, folder: Path, info: DatasetInfo, items: Sequence[Item]) -> None:
        self.folder = folder
        self.info = info
        self.items = items

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Dataset:
        """Reads `folder`. NotFound if there is none, InvalidDataset naming file and line if it is broken.

        `verify` compares the hash of items.jsonl with dataset.json's.
        """
        if not (folder / "dataset.json").is_file():
            raise no_such_dataset(folder)
        info = _read_info(folder / "dataset.json")
        path = folder / "items.jsonl"
        if not path.is_file():
            raise InvalidDataset(path=path, reason="missing; import the dataset again")
        if verify and (found := file_sha256(path)) != info.sha256:
            raise InvalidDataset(
                path=path, reason=f"sha256 is {found[:12]}…, dataset.json says {info.sha256[:12]}…; import again"
            )
        with path.open("rb") as stream:
            items = [_read_item(path, number, line) for number, line in enumerate(stream)]
        return cls(folder, info, items)

    @property
    def name(self) -> str:
        return self.info.name

    def __len__(self) -> int:
        return len(self.items)

    def item(self, item_id: int) -> Item:
        if not 0 <= item_id < len(self.items):
            raise NotFound(what="item", name=str(item_id), hint=f"dataset {self.name!r} has ids 0 to {len(self.items) - 1}")
        return self.items[item_id]

    @cached_property
    def _ids_by_split(self) -> dict[str, list[ItemId]]:
        ids: dict[str, list[ItemId]] = {}
        for item in self.items:
            ids.setdefault(item.split, []).append(item.item_id)
        return ids

    @property
    def splits(self) -> list[str]:
        return list(self._ids_by_split)

    def split_ids(self, split: str) -> list[ItemId]:
        """Ids of a split in ascending order."""
        if split not in self._ids_by_split:
            raise NotFound(what="split", name=split, hint=f"dataset {self.name!r} has {', '.join(self._ids_by_split)}")
        return self._ids_by_split[split]

    @cached_property
    def _id_by_question_id(self) -> dict[str, ItemId]:
        return {item.question_id: item.item_id for item in self.items}

    def id_of_question(self, question_id: str) -> ItemId:
        """ItemId of the dataset's own question id."""
        if question_id not in self._id_by_question_id:
            raise NotFound(what="question_id", name=question_id, hint=f"dataset {self.name!r} has no such question")
        return self._id_by_question_id[question_id]

    def image_path(self, item_id: int) -> Path:
        """Path of an item's image, confined to the dataset folder; NotFound where it has none."""
        item = self.item(item_id)
        if item.image is None:
            raise NotFound(what="image of item", name=str(item_id), hint="the dataset was imported without images")
        try:
            path = (self.folder / item.image).resolve()
            is_inside, is_file = path.is_relative_to(self.folder.resolve()), path.is_file()
        except (OSError, ValueError, RuntimeError) as exc:
            # A name with a NUL, one that no file can have, links in a circle.
            reason = f"item {item_id}: image {shorten(repr(item.image))} is no path: {type(exc).__name__}"
            raise InvalidDataset(path=self.folder / "items.jsonl", reason=reason) from exc
        if not is_inside:
            reason = f"item {item_id}: image {shorten(repr(item.image))} leaves the folder"
            raise InvalidDataset(path=self.folder / "items.jsonl", reason=reason)
        if not is_file:
            raise NotFound(what="image file", name=item.image, hint=f"item {item_id} of dataset {self.name!r} names it")
        return path

    def fingerprint(self) -> dict[str, Any]:
        """The `dataset` part of a fingerprint."""
        return {
            "name": self.info.name,
            "version": self.info.version,
            "items_sha256": self.info.sha256,
            "answers_source": self.info.answers_source,
        }


def no_such_dataset(folder: Path) -> NotFound:
    """What is said of a folder without dataset.json: which datasets lie beside it."""
    there = sorted(path.parent.name for path in folder.parent.glob("*/dataset.json"))
    hint = shorten(f"{folder.parent} holds {', '.join(there) or 'none'}")
    return NotFound(what="dataset", name=folder.name, hint=f"{hint}; `leverplus import` makes one")


def majority_answer(answers: Sequence[str]) -> str | None:
    """The commonest answer, the first one on a tie; None without answers."""
    return Counter(answers).most_common(1)[0][0] if answers else None


def write_dataset(folder: Path, info: DatasetInfo, items: Iterable[Item]) -> DatasetInfo:
    """Writes items.jsonl, then dataset.json with counts and hash; ids must be 0, 1, 2, … Returns the completed info.

    Images are the caller's to place; without dataset.json the folder is no dataset, so a broken import is not seen.
    """
    path = folder / "items.jsonl"
    counts: Counter[str] = Counter()
    with atomic_file(path) as stream:
        for number, item in enumerate(items):
            if item.item_id != number:
                raise InvalidDataset(path=path, reason=f"line {number + 1} holds item_id {item.item_id}, expected {number}")
            counts[item.split] += 1
            stream.write(orjson.dumps(asdict(item), option=orjson.OPT_APPEND_NEWLINE))
    if not counts:
        raise InvalidDataset(path=path, reason="no items")
    complete = DatasetInfo(info.name, info.version, info.licence, info.answers_source, dict(counts), file_sha256(path))
    write_json(folder / "dataset.json", asdict(complete))
    return complete


def _read_info(path: Path) -> DatasetInfo:
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as exc:
        raise InvalidDataset(path=path, reason=f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidDataset(path=path, reason=f"is {shorten(repr(value))}, expected an object")
    try:
        info = DatasetInfo(**cast("dict[str, Any]", value))
    except TypeError as exc:
        raise InvalidDataset(path=path, reason=f"not readable: {exc}") from exc
    for name in ("name", "version", "licence", "sha256"):
        if not isinstance(found := getattr(info, name), str):
            raise InvalidDataset(path=path, reason=f"{name} is {shorten(repr(found))}, expected a string")
    splits: Any = info.splits
    if not isinstance(splits, dict) or not all(type(count) is int for count in cast("dict[str, Any]", splits).values()):
        reason = f"splits is {shorten(repr(splits))}, expected an object that gives each split its number of items"
        raise InvalidDataset(path=path, reason=reason)
    if info.answers_source not in get_args(AnswersSource):
        known = " or ".join(repr(source) for source in get_args(AnswersSource))
        raise InvalidDataset(path=path, reason=f"answers_source is {info.answers_source!r}, expected {known}")
    return info


def _read_item(path: Path, number: int, line: bytes) -> Item:
    try:
        value = orjson.loads(line)
        answers = value.get("answers")
        if not isinstance(answers, list | None):
            raise TypeError(f"answers is {shorten(repr(answers))}, expected a list")
        value["answers"] = tuple(answers or ())
        item = Item(**value)
    except (orjson.JSONDecodeError, TypeError, AttributeError) as exc:
        raise InvalidDataset(path=path, reason=f"line {number + 1}: not an item: {exc}") from exc
    if type(item.item_id) is not int or item.item_id != number:
        found = shorten(repr(item.item_id))
        raise InvalidDataset(path=path, reason=f"line {number + 1} holds item_id {found}, expected {number}")
    if (fault := _wrong_field(item)) is not None:
        raise InvalidDataset(path=path, reason=f"line {number + 1}: {fault}")
    return item


def _wrong_field(item: Item) -> str | None:
    """What is not of its type, for a file says anything; None where all are."""
    values: tuple[Any, ...] = (item.split, item.image_id, item.question_id, item.question)
    optional: tuple[Any, ...] = (item.image, item.answer)
    answers: tuple[Any, ...] = item.answers
    for value in values:
        if not isinstance(value, str):
            return f"{shorten(repr(value))} stands for split, image_id, question_id or question, which are text"
    for value in optional:
        if not isinstance(value, str | None):
            return f"{shorten(repr(value))} stands for image or answer, which are text or null"
    for value in answers:
        if not isinstance(value, str):
            return f"{shorten(repr(value))} is among the answers, which are text"
    return None
