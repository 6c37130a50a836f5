"""Features of images, kept within bounds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leverplus.images import FileVersion
from vqa_scorer.engines.prefixes import ImageShape


@dataclass(frozen=True)
class ImageFeatures:
    """An image after the vision tower: values [tokens, hidden]."""

    shape: ImageShape
    values: Tensor

    @property
    def bytes(self) -> int:
        return self.values.numel() * self.values.element_size()


class FeatureCache:
    """What the vision tower made of image files: on the model's device within `device_bytes`, then in the host's memory within
    `host_bytes`, the least recently used moved on and then dropped. Safe for several threads."""

    def __init__(self, *, device_bytes: int, host_bytes: int = 0) -> None:
        self._lock = threading.Lock()
        self._near = _Shelf(device_bytes)
        self._far = _Shelf(host_bytes)

    def __len__(self) -> int:
        return len(self._near.held) + len(self._far.held)

    def get(self, version: FileVersion) -> ImageFeatures | None:
        """The values of some may lie in the host's memory."""
        with self._lock:
            for shelf in (self._near, self._far):
                if (found := shelf.held.get(version)) is not None:
                    shelf.held.move_to_end(version)
                    return found
        return None

    def put(self, version: FileVersion, features: ImageFeatures) -> None:
        """Features on the device. What is larger than the limits is not kept."""
        with self._lock:
            for old, dropped in self._near.put(version, features):
                for _ in self._far.put(old, _on_host(dropped) if self._far.limit else dropped):
                    continue

    def clear_device(self) -> None:
        """Frees the device's share."""
        with self._lock:
            self._near = _Shelf(self._near.limit)


class _Shelf:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: OrderedDict[FileVersion, ImageFeatures] = OrderedDict()
        self._bytes = 0

    def put(self, version: FileVersion, features: ImageFeatures) -> list[tuple[FileVersion, ImageFeatures]]:
        """What finds no place any more, the newcomer too if it is larger than the limit."""
        if (known := self.held.pop(version, None)) is not None:
            self._bytes -= known.bytes
        self.held[version] = features
        self._bytes += features.bytes
        dropped: list[tuple[FileVersion, ImageFeatures]] = []
        while self._bytes > self.limit:
            dropped.append(self.held.popitem(last=False))
            self._bytes -= dropped[-1][1].bytes
        return dropped


def _on_host(features: ImageFeatures) -> ImageFeatures:
    if not features.values.is_cuda:
        return features
    # Into pinned memory the copy waits its turn on the device, and this thread goes on.
    values = torch.empty(features.values.shape, dtype=features.values.dtype, pin_memory=True)
    return replace(features, values=values.copy_(features.values, non_blocking=True))
