"""Pictures for the in-context VLM's training, kept as bytes on the device: rendered scenes by what they show, and easy-vqa's."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from in_context_episodes import EASY_QUESTION, Items
from small_vlm_data import IGNORED, IMAGE_SIDE, Split, load_pixels, to_patches
from torch import Tensor
from train_small_vlm import shape_boxes

from leverplus.dataset.invented_words.scenes import FRAMES, draw_scene, render
from leverplus.dataset.invented_words.words import COLOURS, SHAPES
from leverplus.random_order import derive_seed

NAME_COUNTS = (len(COLOURS), len(SHAPES), len(FRAMES), 8, 3)
"""How many there are of each column of `Pictures.names`."""

CELLS = tuple(product(COLOURS, SHAPES, FRAMES))


def render_cell(cell: int, count: int, purpose: str) -> npt.NDArray[np.uint8]:
    """`count` pictures [count, 56, 56, 3] of one colour, shape and frame; other purposes have other pictures."""
    colour, shape, frame = CELLS[cell]
    seeds = (derive_seed("bank", purpose, cell, number) for number in range(count))
    return np.stack([render(draw_scene(colour, shape, frame, seed)) for seed in seeds])


def render_bank(per_cell: int, purpose: str, workers: int) -> Tensor:
    """[75·per_cell, 3, 56, 56] uint8, the cells one after the other."""
    tasks = (range(len(CELLS)), [per_cell] * len(CELLS), [purpose] * len(CELLS))
    if workers <= 1:
        cells = list(map(render_cell, *tasks))
    else:
        with ProcessPoolExecutor(workers) as pool:
            cells = list(pool.map(render_cell, *tasks))
    return torch.from_numpy(np.concatenate(cells)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Pictures:
    """Rendered pictures, then easy-vqa's. Pictures of easy-vqa have a flat ground, so a shift that keeps the shape whole makes
    another picture that its generator could have drawn."""

    pixels: Tensor  # [N, 3, 56, 56] uint8
    per_cell: int
    easy_image: Tensor  # [easy items] which of easy-vqa's pictures
    easy_names: Tensor  # [easy pictures, 2] colour and shape as numbers, -100 where no question tells
    easy_box: Tensor  # [easy pictures, 4] first row, last row, first column, last column of the shape
    mean: Tensor  # [3, 1, 1]
    deviation: Tensor
    generator: torch.Generator

    def patches(self, items: Items, *, augment: bool) -> Tensor:
        """Patches [B·N·16, 1176] of the items' pictures, as the image processor hands them to the model."""
        values = (items.colour, items.shape, items.frame, items.easy, items.asked == EASY_QUESTION)
        return self._patches(*(value.flatten() for value in values), augment=augment)

    def names(self, items: Items) -> Tensor:
        """What the pictures show [B·N, 5]: colour, shape, frame, easy-vqa's colour and shape; -100 where it is not told."""
        is_easy = (items.asked == EASY_QUESTION).flatten()[:, None]
        own = torch.stack([items.colour.flatten(), items.shape.flatten(), items.frame.flatten()], 1)
        of_easy = self.easy_names[self.easy_image[items.easy.flatten()]]
        return torch.cat([torch.where(is_easy, IGNORED, own), torch.where(is_easy, of_easy, IGNORED)], 1)

    def _patches(self, colour: Tensor, shape: Tensor, frame: Tensor, easy: Tensor, is_easy: Tensor, *, augment: bool) -> Tensor:
        device = self.pixels.device
        cell = (colour * len(SHAPES) + shape) * len(FRAMES) + frame
        own = cell * self.per_cell + torch.randint(0, self.per_cell, cell.shape, device=device, generator=self.generator)
        of_easy = self.easy_image[easy]
        pixels = self.pixels[torch.where(is_easy, len(CELLS) * self.per_cell + of_easy, own)]
        if augment:
            pixels = self._augmented(pixels, self.easy_box[of_easy], is_easy)
        return to_patches((pixels.float() * (1 / 255) - self.mean) / self.deviation)

    def _augmented(self, pixels: Tensor, box: Tensor, is_easy: Tensor) -> Tensor:
        """Half of the pictures mirrored: what is asked about looks the same in a mirror, up to a turn that is drawn anyway."""
        device, side = pixels.device, torch.arange(IMAGE_SIDE, device=pixels.device)
        room = torch.rand(len(pixels), 2, device=device, generator=self.generator)
        free = IMAGE_SIDE - (box[:, 1::2] - box[:, ::2] + 1)
        shift = ((room * (free + 1)).long().clamp(max=IMAGE_SIDE) - box[:, ::2]) * is_easy[:, None]
        rows, columns = ((side - shift[:, axis, None]) % IMAGE_SIDE for axis in (0, 1))
        mirror = torch.rand(len(pixels), 1, device=device, generator=self.generator) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
        picture = torch.arange(len(pixels), device=device)[:, None, None, None]
        channel = torch.arange(3, device=device)[:, None, None]
        return pixels[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def easy_pixels(image_processor: Any, easy: Split) -> tuple[Tensor, Tensor]:
    """easy-vqa's pictures as the processor resizes them [N, 3, 56, 56] uint8, and the boxes of their shapes [N, 4]."""
    normalised = load_pixels(image_processor, easy.image_paths)
    mean, deviation = channel_statistics(image_processor)
    return ((normalised * deviation + mean) * 255).round().to(torch.uint8), shape_boxes(normalised)


def easy_names(easy: Split) -> Tensor:
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


def channel_statistics(image_processor: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3, 1, 1] that the processor normalises with."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std))
    return mean, deviation
