"""From image files to the patches that Qwen2.5-VL's vision tower takes: what transformers' image processor gives, but decoded and
resized on threads, and the rest of it on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from leverplus.errors import InvalidInput
from leverplus.images import read_image
from vqa_scorer.engines.attention import upload

IMAGE_PROCESSOR = "Qwen2VLImageProcessorPil"
"""The class of transformers that gives the same values."""


@dataclass(frozen=True)
class Pixels:
    """A decoded image in the size that the model reads: values [height, width, 3] as bytes; rows and columns of its tokens."""

    values: npt.NDArray[np.uint8]
    rows: int
    columns: int


class PixelReader:
    """Reads images as the settings of a loaded Qwen2-VL image processor say, for a model on `device`.

    `read` may be called from several threads.
    """

    def __init__(self, processor: Any, device: torch.device) -> None:
        self._device = device
        self._patch, self._merge = int(processor.patch_size), int(processor.merge_size)
        self._frames = int(processor.temporal_patch_size)
        self._resizes = bool(processor.do_resize)
        self._smallest, self._largest = int(processor.size["shortest_edge"]), int(processor.size["longest_edge"])
        self._resample = Image.Resampling(int(processor.resample))
        self._factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
        normalises = bool(processor.do_normalize)
        self._mean = torch.tensor(processor.image_mean if normalises else [0.0] * 3, device=device)
        self._deviation = torch.tensor(processor.image_std if normalises else [1.0] * 3, device=device)

    def read(self, path: Path) -> Pixels:
        """InvalidInput naming a file that is missing, broken, or longer than it is wide by more than the model takes."""
        image = read_image(path)
        side = self._patch * self._merge
        try:
            height, width = (
                smart_resize(image.height, image.width, factor=side, min_pixels=self._smallest, max_pixels=self._largest)
                if self._resizes
                else (image.height, image.width)
            )
        except ValueError as exc:
            raise InvalidInput(f"image {path} cannot be read: {exc}", image=str(path)) from exc
        if (height % side, width % side) != (0, 0):
            raise InvalidInput(f"image {path} has {image.width} × {image.height} pixels, the model takes multiples of {side}")
        resized = image if image.size == (width, height) else image.resize((width, height), self._resample)
        return Pixels(np.array(resized), height // side, width // side)

    def patch_count(self, pixels: Pixels) -> int:
        return pixels.rows * pixels.columns * self._merge**2

    def patches(self, images: Sequence[Pixels]) -> Tensor:
        """[Σ patches, 3 · frames · height · width] of images in order, float32; a picture's frames are all the same."""
        # Neighbours of one size go together: a photographer's pictures mostly have one.
        runs = [list(run) for _, run in groupby(images, key=lambda image: image.values.shape)]
        return torch.cat([self._patches_of_one_size(run) for run in runs])

    def _patches_of_one_size(self, images: Sequence[Pixels]) -> Tensor:
        rows, columns = images[0].rows, images[0].columns
        values = upload(np.stack([image.values for image in images]), self._device)
        scaled = (values.float() * self._factor - self._mean) / self._deviation
        grid = scaled.unflatten(2, (columns, self._merge, self._patch)).unflatten(1, (rows, self._merge, self._patch))
        # [images, rows, merge, patch, columns, merge, patch, 3] → a merged token's patches one behind the other, channels first
        ordered = grid.permute(0, 1, 4, 2, 5, 7, 3, 6)[:, :, :, :, :, :, None]
        return ordered.expand(-1, -1, -1, -1, -1, -1, self._frames, -1, -1).flatten(5).flatten(0, 4)
