"""Episodes and their pictures, for training and held out, and the check that they are what the scorer's processor makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from in_context_vlm import PATCHES_PER_IMAGE, TOKENS_PER_IMAGE
from in_context_vlm.easy_questions import HELD_OUT_IMAGES, read_split, shown_names
from in_context_vlm.episodes import Episodes, EpisodeSource
from in_context_vlm.patches import channel_statistics, from_patches, to_bytes
from in_context_vlm.pictures import Pictures, easy_pixels, render_bank
from in_context_vlm.pieces import build_pieces
from in_context_vlm.tokenizer import IMAGE_PAD


@dataclass(frozen=True)
class Side:
    """Both draw from one generator."""

    source: EpisodeSource
    pictures: Pictures

    @property
    def generator(self) -> torch.Generator:
        return self.source.generator


def build_sides(
    tokenizer: Any, image_processor: Any, device: torch.device, *, per_cell: int, seed: int, workers: int
) -> tuple[Side, Side]:
    """Training and held out, which has other pictures and another seed.

    `per_cell` pictures of each colour, shape and frame are rendered, and a 20th of it for those held out.
    """
    easy = read_split("train")
    of_easy, boxes = easy_pixels(image_processor, easy)
    easy_image = torch.tensor(easy.image_ids, device=device)
    first_held_out = len(easy.image_paths) - HELD_OUT_IMAGES
    mean, deviation = (value.to(device) for value in channel_statistics(image_processor))
    pieces, names_of_easy = build_pieces(tokenizer, easy, device), shown_names(easy).to(device)
    sides: list[Side] = []
    for purpose, count, number in (("training", per_cell, 0), ("held out", max(1, per_cell // 20), 1)):
        generator = torch.Generator(device).manual_seed(2 * seed + number)
        bank = torch.cat([render_bank(count, purpose, workers), of_easy]).to(device)
        which = ((easy_image >= first_held_out) == bool(number)).nonzero().flatten()
        pictures = Pictures(bank, count, easy_image, names_of_easy, boxes.to(device), mean, deviation, generator)
        sides.append(Side(EpisodeSource(tokenizer, pieces, which, generator), pictures))
    return sides[0], sides[1]


def assert_same_as_processor(side: Side, processor: Any, episodes: Episodes) -> None:
    """The assembled tokens and patches are those of the processor on the whole prompt and its pictures."""
    drawn = side.pictures.patches(episodes.items, augment=False).cpu()
    pixels = to_bytes(from_patches(drawn), *channel_statistics(processor.image_processor)).permute(0, 2, 3, 1).numpy()
    number = episodes.items.asked.shape[1]
    for row in range(len(episodes.ids)):
        length = int((episodes.owner[row] >= 0).nonzero().max()) + 1
        ids = episodes.ids[row, :length].cpu()
        text = processor.tokenizer.decode(ids).replace(IMAGE_PAD * TOKENS_PER_IMAGE, IMAGE_PAD)
        shown = slice(row * number, (row + 1) * number)
        pictures = [Image.fromarray(picture) for picture in pixels[shown]]
        whole = processor(text=[text], images=pictures, return_tensors="pt")
        if not torch.equal(whole["input_ids"][0], ids):
            raise AssertionError(f"an assembled prompt is tokenized in another way: {text!r}")
        patches = drawn[shown.start * PATCHES_PER_IMAGE : shown.stop * PATCHES_PER_IMAGE]
        torch.testing.assert_close(patches, whole["pixel_values"], rtol=0, atol=1e-4)
