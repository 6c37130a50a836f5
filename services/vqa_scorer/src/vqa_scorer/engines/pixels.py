"""From image files to the patches that Qwen2.5-VL's vision tower takes: what transformers' image processor gives, but decoded and
resized on threads, and the rest of it on the model's device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from leverplus.errors import InvalidInput
from vqa_scorer.engines.images import read_image

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

    def patches(self, pixels: Pixels) -> Tensor:
        """[patches, 3 · frames · height · width], float32: a picture's frames are all the same."""
        values = torch.from_numpy(pixels.values)
        if self._device.type == "cuda":
            values = values.pin_memory().to(self._device, non_blocking=True)
        scaled = (values.float() * self._factor - self._mean) / self._deviation
        grid = scaled.permute(2, 0, 1).unflatten(2, (pixels.columns, self._merge, self._patch))
        grid = grid.unflatten(1, (pixels.rows, self._merge, self._patch))
        # [3, rows, merge, patch, columns, merge, patch] → a merged token's patches one behind the other, channels before pixels
        ordered = grid.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        return ordered.expand(-1, -1, -1, -1, -1, self._frames, -1, -1).flatten(4).flatten(0, 3)
