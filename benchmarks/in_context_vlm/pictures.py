"""Pictures to train on, kept as bytes on the device: rendered scenes by what they show, and easy-vqa's."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from in_context_vlm import IGNORED, IMAGE_SIDE
from in_context_vlm.easy_questions import EasyQuestions
from in_context_vlm.episodes import EASY_QUESTION, Items
from in_context_vlm.patches import channel_statistics, load_pixels, to_bytes, to_patches
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
        cell = ((items.colour * len(SHAPES) + items.shape) * len(FRAMES) + items.frame).flatten()
        number = torch.randint(0, self.per_cell, cell.shape, device=cell.device, generator=self.generator)
        is_easy = (items.asked == EASY_QUESTION).flatten()
        of_easy = self.easy_image[items.easy.flatten()]
        pixels = self.pixels[torch.where(is_easy, len(CELLS) * self.per_cell + of_easy, cell * self.per_cell + number)]
        if augment:
            pixels = self._augmented(pixels, self.easy_box[of_easy], is_easy)
        return to_patches((pixels.float() * (1 / 255) - self.mean) / self.deviation)

    def names(self, items: Items) -> Tensor:
        """What the pictures show [B·N, 5]: colour, shape, frame, easy-vqa's colour and shape; -100 where it is not told."""
        is_easy = (items.asked == EASY_QUESTION).flatten()[:, None]
        own = torch.stack([items.colour.flatten(), items.shape.flatten(), items.frame.flatten()], 1)
        of_easy = self.easy_names[self.easy_image[items.easy.flatten()]]
        return torch.cat([torch.where(is_easy, IGNORED, own), torch.where(is_easy, of_easy, IGNORED)], 1)

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


def easy_pixels(image_processor: Any, easy: EasyQuestions) -> tuple[Tensor, Tensor]:
    """easy-vqa's pictures as the processor resizes them [N, 3, 56, 56] uint8, and the boxes of their shapes [N, 4]."""
    normalised = load_pixels(image_processor, easy.image_paths)
    return to_bytes(normalised, *channel_statistics(image_processor)), shape_boxes(normalised)


def shape_boxes(normalised: Tensor) -> Tensor:
    """First row, last row, first and last column [N, 4] that differ from the flat ground, which is a picture's median."""
    ground = normalised.flatten(2).median(2).values[..., None, None]
    differs = ((normalised - ground).abs() > 0.05).any(1)  # [N, 56, 56]
    edges: list[Tensor] = []
    for touched in (differs.any(2), differs.any(1)):
        first = touched.float().argmax(1)
        last = IMAGE_SIDE - 1 - touched.flip(1).float().argmax(1)
        edges += [first, last]
    return torch.stack(edges, 1)
