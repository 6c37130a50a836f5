"""Pictures of 56×56 pixels as Qwen2.5-VL's image processor hands them to the model, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from in_context_vlm import IMAGE_SIDE


def to_patches(pixels: Tensor) -> Tensor:
    """[N, 3, 56, 56] → [N·16, 1176] in the order of the image processor."""
    blocks = pixels.reshape(-1, 3, 2, 2, 14, 2, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return blocks.unsqueeze(6).expand(-1, 2, 2, 2, 2, 3, 2, 14, 14).reshape(-1, 3 * 2 * 14 * 14)


def from_patches(patches: Tensor) -> Tensor:
    """The inverse of `to_patches`."""
    # [N, row block, column block, row, column, channel, time, y, x]; both times are the same picture
    blocks = patches.reshape(-1, 2, 2, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, :, 0]
    return blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, IMAGE_SIDE, IMAGE_SIDE)


def load_pixels(image_processor: Any, paths: list[Path]) -> Tensor:
    """Pictures of any size as the processor resizes and normalises them [N, 3, 56, 56]."""
    pictures: list[Image.Image] = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    return from_patches(image_processor(images=pictures, return_tensors="pt")["pixel_values"])


def channel_statistics(image_processor: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3, 1, 1] that the processor normalises with."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std))
    return mean, deviation


def to_bytes(normalised: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """What was normalised with these, as bytes."""
    return ((normalised * deviation + mean) * 255).round().to(torch.uint8)
