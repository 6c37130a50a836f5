"""easy-vqa's questions as they lie in its package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import easy_vqa
import torch
from torch import Tensor

from in_context_vlm import IGNORED

HELD_OUT_IMAGES = 200
"""The last training pictures, which progress is watched on."""


@dataclass(frozen=True)
class EasyQuestions:
    """Questions of one split; `image_ids` index `image_paths`."""

    questions: list[str]
    answers: list[str]
    image_ids: list[int]
    image_paths: list[Path]


def read_split(name: str) -> EasyQuestions:
    """The split "train" or "test" of the installed easy-vqa package."""
    folder = Path(easy_vqa.__file__).parent / "data" / name
    rows = json.loads((folder / "questions.json").read_text())
    images = [folder / "images" / f"{i}.png" for i in range(len(list((folder / "images").glob("*.png"))))]
    return EasyQuestions([row[0] for row in rows], [row[1] for row in rows], [int(row[2]) for row in rows], images)


def shown_names(easy: EasyQuestions) -> Tensor:
    """Colour and shape [pictures, 2] of easy-vqa's pictures as its questions tell them: numbers, -100 where none does."""
    shapes = ("circle", "rectangle", "triangle")
    colours = sorted(set(easy.answers) - {"yes", "no", *shapes})
    names = torch.full((len(easy.image_paths), 2), IGNORED)
    for answer, image in zip(easy.answers, easy.image_ids, strict=True):
        if answer in shapes:
            names[image, 1] = shapes.index(answer)
        elif answer in colours:
            names[image, 0] = colours.index(answer)
    return names
