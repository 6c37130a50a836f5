"""Imports a cut of easy-vqa: real, simple questions about one coloured shape, in a Python package (MIT) with its images.

It has one answer a question, which stands in for ten annotators (`answers_source` is "replicated"). The package's test images are
cut by image into val and test, so that no image of one is in the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from leverplus.data_root import check_name
from leverplus.dataset.folder import DatasetInfo, Item, write_dataset
from leverplus.dataset.vqa import refuse_existing
from leverplus.errors import InvalidConfig, InvalidDataset, Unavailable
from leverplus.files import atomic_folder
from leverplus.ids import ItemId
from leverplus.metric.accuracy import ANNOTATORS


def import_easy_vqa(
    folder: Path,
    *,
    name: str = "easy-vqa",
    train_images: int | None = None,
    test_images: int | None = None,
    questions_per_image: int | None = None,
    seed: int = 0,
    val_share: float = 0.5,
) -> DatasetInfo:
    """Writes the dataset folder `folder` with splits train, val and test, whole or not at all; images are copied below it.

    `train_images` of the package's 4,000 train images and `test_images` of its 1,000 test images are drawn with `seed`, and of
    each `questions_per_image` questions; None takes all. `val_share` in [0, 1) of the drawn test images become val. With the same
    seed and share, a smaller cut is part of a larger one, split by split.
    Raises Conflict if `folder` exists, InvalidConfig for an impossible cut, Unavailable without the package.
    """
    check_name(name, what="dataset")
    refuse_existing(folder)
    if not 0 <= val_share < 1:
        raise InvalidConfig(field="val_share", reason=f"is {val_share}, expected a number from 0 to below 1")
    if questions_per_image is not None and questions_per_image < 1:
        raise InvalidConfig(field="questions_per_image", reason=f"is {questions_per_image}, expected 1 or more")
    package = _package()
    train = _Part("train", package.get_train_questions(), package.get_train_image_paths())
    test = _Part("test", package.get_test_questions(), package.get_test_image_paths())
    train_drawn = train.draw(train_images, seed, what="train_images")
    # Cut by a rule on the drawn order, so that an image keeps its split when more are drawn. The first is always test.
    test_drawn = list(enumerate(test.draw(test_images, seed, what="test_images")))
    of_val = {number for number, _ in test_drawn if int((number + 1) * val_share) > int(number * val_share)}
    if val_share > 0 and not of_val:
        reason = f"{len(test_drawn)} are too few for a val share of {val_share}; draw more, or set the share to 0"
        raise InvalidConfig(field="test_images", reason=reason)
    cut = [
        ("train", train, train_drawn),
        ("val", test, [image for number, image in test_drawn if number in of_val]),
        ("test", test, [image for number, image in test_drawn if number not in of_val]),
    ]
    with atomic_folder(folder) as temporary:
        items = _items(temporary, cut, questions_per_image, seed)
        return write_dataset(temporary, DatasetInfo(name, version("easy-vqa"), "MIT", "replicated"), items)


class _Part:
    """The package's train or test half: image -> its questions, and where the image lies."""

    def __init__(self, name: str, questions: tuple[list[str], list[str], list[int]], paths: dict[int, str]) -> None:
        self.name = name
        self.paths = {image: Path(path) for image, path in paths.items()}
        self.questions: dict[int, list[tuple[int, str, str]]] = {}
        for number, (question, answer, image) in enumerate(zip(*questions, strict=True)):
            self.questions.setdefault(image, []).append((number, question, answer))

    def draw(self, count: int | None, seed: int, *, what: str) -> list[int]:
        """`count` images with questions, in drawn order."""
        images = sorted(self.questions)
        if count is None:
            count = len(images)
        if not 1 <= count <= len(images):
            raise InvalidConfig(field=what, reason=f"is {count}, the package has 1 to {len(images)} {self.name} images to give")
        Random(f"easy-vqa images {self.name} {seed}").shuffle(images)
        return images[:count]

    def draw_questions(self, image: int, count: int | None, seed: int) -> list[tuple[int, str, str]]:
        """(number in the package, question, answer) of `count` of the image's questions, in the package's order."""
        questions = list(self.questions[image])
        Random(f"easy-vqa questions {self.name} {image} {seed}").shuffle(questions)
        return sorted(questions[:count])


def _items(folder: Path, cut: list[tuple[str, _Part, list[int]]], per_image: int | None, seed: int) -> Iterator[Item]:
    """The items in split, image and question order; copies each image below `folder` on the way."""
    item_id = 0
    for split, part, images in cut:
        for image in sorted(images):
            relative = Path("images", part.name, f"{image}.png")
            _copy_image(part.paths.get(image), folder / relative, f"{part.name} image {image}")
            for number, question, answer in part.draw_questions(image, per_image, seed):
                yield Item(
                    item_id=ItemId(item_id),
                    split=split,
                    image=relative.as_posix(),
                    image_id=f"{part.name}-{image}",
                    question_id=f"{part.name}-{number}",
                    question=question,
                    answer=answer,
                    answers=(answer,) * ANNOTATORS,
                )
                item_id += 1


def _copy_image(source: Path | None, target: Path, what: str) -> None:
    if source is None or not source.is_file():
        raise InvalidDataset(path="package easy-vqa", reason=f"{what} is missing; install the package again")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _package() -> Any:
    try:
        import easy_vqa
    except ImportError as exc:
        hint = "pip install 'leverplus[cli]'"
        raise Unavailable(what="the package easy-vqa", reason="it is not installed", hint=hint) from exc
    return easy_vqa
