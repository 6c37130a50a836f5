"""Imports data sets in the official VQA form: a question file and an annotation file for each split, a folder of images.

Read are VQAv2 and OK-VQA ({"questions": […]}, {"annotations": […]}), VizWiz ({"questions": […]} or a bare list of entries with
`image`), and TextVQA ({"data": […]}, answers beside the questions).
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import orjson

from leverplus.data_root import check_name
from leverplus.dataset.folder import DatasetInfo, Item, majority_answer, write_dataset
from leverplus.errors import Conflict, InvalidConfig, InvalidDataset, NotFound
from leverplus.files import atomic_folder
from leverplus.ids import ItemId

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_EXAMPLES_OF_MISSING = 3


@dataclass(frozen=True)
class _Question:
    """An item before it has an id, and the file names under which its image may lie, best first."""

    item: Item
    image_names: tuple[str, ...]


def import_vqa(
    folder: Path,
    *,
    name: str,
    splits: Mapping[str, tuple[Path, Path | None]],
    image_folder: Path | None,
    version: str,
    licence: str,
) -> DatasetInfo:
    """Writes the dataset folder `folder`, whole or not at all. `splits`: name -> (question file, annotation file or None).

    Without annotations (of a split, or of a question) the answers are unknown. Question ids that two splits share are prefixed
    "<split>:". `image_folder` None makes a data set of texts. An image is looked for as the entry's `image` (or an `image_id`
    that is a file name), COCO_<data_subtype>_<image_id, 12 digits>.jpg, <image_id>.jpg/.jpeg/.png, in `image_folder` and its
    subfolders named after the file's data_subtype or the split; it is hard-linked below `folder`, or copied where links are
    not possible.
    Raises Conflict if `folder` exists, NotFound for a missing file, InvalidDataset for one that cannot be understood or for
    missing images (how many, with examples), InvalidConfig for an impossible name.
    """
    check_name(name, what="dataset")
    refuse_existing(folder)
    if not splits:
        raise InvalidConfig(field="splits", reason="none given; name at least one split with its question file")
    if image_folder is not None and not image_folder.is_dir():
        raise NotFound(
            what="image folder", name=str(image_folder), hint="give the folder of the images, or import without images"
        )
    questions = [question for split, files in splits.items() for question in _read_split(check_name(split, what="split"), *files)]
    questions = _tell_splits_apart(questions)
    sources = {} if image_folder is None else _find_images(image_folder, questions)
    items = [
        replace(question.item, item_id=ItemId(number), image=_below(sources[number]) if sources else None)
        for number, question in enumerate(questions)
    ]
    with atomic_folder(folder) as temporary:
        for source, relative in set(sources.values()):
            place_image(source, temporary / "images" / relative)
        return write_dataset(temporary, DatasetInfo(name, version, licence, "human"), items)


def refuse_existing(folder: Path) -> None:
    """Raises Conflict if there is something where a dataset is to be written."""
    if folder.exists() or folder.is_symlink():
        raise Conflict(f"{folder} exists already; import under another name, or delete it first", path=str(folder))


def place_image(source: Path, target: Path) -> None:
    """Puts an image below a dataset folder: a hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _read_split(split: str, question_file: Path, annotation_file: Path | None) -> Iterator[_Question]:
    content = _load(question_file)
    entries = _entries(question_file, content, ("questions", "data"))
    subtype = content.get("data_subtype") if isinstance(content, dict) else None
    annotations = {} if annotation_file is None else _read_annotations(annotation_file)
    seen: set[str] = set()
    unmatched = 0
    for index, entry in enumerate(entries):
        image_name = entry.get("image")
        image_id = _identifier(question_file, index, "image_id", entry.get("image_id", image_name))
        question_id = _identifier(question_file, index, "question_id", entry.get("question_id", image_name))
        if question_id in seen:
            raise InvalidDataset(path=question_file, reason=f"entry {index}: question_id {question_id} stands there twice")
        seen.add(question_id)
        question = entry.get("question")
        if not isinstance(question, str) or not question.strip():
            raise InvalidDataset(path=question_file, reason=f"entry {index}: question is {question!r}, expected a text")
        file, annotation = (question_file, entry) if annotation_file is None else (annotation_file, annotations.get(question_id))
        unmatched += annotation is None
        if annotation is not None and str(annotation.get("image_id", image_id)) != image_id:
            reason = f"question_id {question_id} is about image {annotation['image_id']!r}, in {question_file} about {image_id!r}"
            raise InvalidDataset(path=file, reason=f"{reason}; are the files of different splits?")
        answers = () if annotation is None else _answers(file, question_id, annotation.get("answers"))
        shown = None if annotation is None else annotation.get("multiple_choice_answer")
        answer = shown if isinstance(shown, str) and shown.strip() else majority_answer(answers)
        yield _Question(
            Item(ItemId(0), split, None, image_id, question_id, question.strip(), answer, answers),
            _image_names(question_file, index, split, image_id, image_name, subtype),
        )
    if not entries:
        raise InvalidDataset(path=question_file, reason="holds no questions")
    if unmatched == len(entries):
        reason = f"annotates none of the {len(entries)} questions of {question_file}; are they of different splits?"
        raise InvalidDataset(path=annotation_file, reason=reason)


def _read_annotations(path: Path) -> dict[str, dict[str, Any]]:
    annotations: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(_entries(path, _load(path), ("annotations", "data"))):
        question_id = _identifier(path, index, "question_id", entry.get("question_id", entry.get("image")))
        if question_id in annotations:
            raise InvalidDataset(path=path, reason=f"entry {index}: question_id {question_id} stands there twice")
        annotations[question_id] = entry
    return annotations


def _load(path: Path) -> Any:
    if not path.is_file():
        raise NotFound(what="file", name=str(path), hint="give a question or annotation file in JSON")
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as exc:
        raise InvalidDataset(path=path, reason=f"not JSON: {exc}") from exc


def _entries(path: Path, content: Any, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    found = content
    if isinstance(content, dict):
        found = next((content[key] for key in keys if key in content), None)
    if not isinstance(found, list):
        raise InvalidDataset(path=path, reason=f"has no list under {' or '.join(map(repr, keys))}; is it the right file?")
    for index, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise InvalidDataset(path=path, reason=f"entry {index} is no object")
    return cast("list[dict[str, Any]]", found)


def _identifier(path: Path, index: int, field: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InvalidDataset(path=path, reason=f"entry {index}: {field} is {value!r}, expected a number or a text")
    return str(value)


def _answers(path: Path, question_id: str, value: Any) -> tuple[str, ...]:
    """Annotators' answers as they stand: texts, or objects with `answer`."""
    if value is None:
        return ()
    answers: list[str] = []
    for entry in cast("list[Any]", value) if isinstance(value, list) else [None]:
        answer = entry.get("answer") if isinstance(entry, dict) else entry
        if not isinstance(answer, str):
            reason = f"question_id {question_id}: answers are not a list of texts or of objects with 'answer'"
            raise InvalidDataset(path=path, reason=reason)
        answers.append(answer)
    return tuple(answers)


def _tell_splits_apart(questions: list[_Question]) -> list[_Question]:
    counts = Counter(question.item.question_id for question in questions)
    if counts.most_common(1)[0][1] == 1:
        return questions
    return [
        replace(question, item=replace(question.item, question_id=f"{question.item.split}:{question.item.question_id}"))
        for question in questions
    ]


def _image_names(path: Path, index: int, split: str, image_id: str, image_name: Any, subtype: Any) -> tuple[str, ...]:
    names: list[str] = []
    if image_name is not None or image_id.lower().endswith(_IMAGE_SUFFIXES):
        names.append(image_name if isinstance(image_name, str) else image_id)
    else:
        if image_id.isdecimal():
            names.append(f"COCO_{subtype if isinstance(subtype, str) else f'{split}2014'}_{int(image_id):012d}.jpg")
        names += [f"{image_id}{suffix}" for suffix in _IMAGE_SUFFIXES]
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise InvalidDataset(path=path, reason=f"entry {index}: image {name!r} leaves the image folder")
    folders = ["", *([subtype] if isinstance(subtype, str) and "/" not in subtype and ".." not in subtype else []), split]
    return tuple(str(PurePosixPath(folder, name)) for folder in folders for name in names)


def _find_images(folder: Path, questions: list[_Question]) -> dict[int, tuple[Path, str]]:
    """Number of the question -> (file, its path below `folder`)."""
    there = {str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()}
    found: dict[int, tuple[Path, str]] = {}
    missing: dict[str, _Question] = {}
    for number, question in enumerate(questions):
        relative = next((name for name in question.image_names if name in there), None)
        if relative is None:
            missing.setdefault(question.item.image_id, question)
        else:
            found[number] = (folder / relative, relative)
    if missing:
        images = len({question.item.image_id for question in questions})
        examples = "; ".join(
            f"image_id {image_id} of question {question.item.question_id} ({' or '.join(question.image_names[:4])})"
            for image_id, question in list(missing.items())[:_EXAMPLES_OF_MISSING]
        )
        reason = f"{len(missing)} of {images} images are missing, for instance {examples}"
        raise InvalidDataset(path=folder, reason=reason, missing=len(missing))
    return found


def _below(source: tuple[Path, str]) -> str:
    return f"images/{source[1]}"
