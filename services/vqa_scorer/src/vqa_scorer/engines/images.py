"""Images of prompts: reading them, and keeping what was made of them within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from leverplus.errors import InvalidInput

T = TypeVar("T")
FileVersion = tuple[Path, int, int]


def read_image(path: Path) -> Image.Image:
    """The decoded RGB image; InvalidInput naming the file if it is missing, truncated or no image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise InvalidInput(f"image {path} cannot be read: {exc}", image=str(path)) from exc


def file_version(path: Path) -> FileVersion:
    """Changes when the file is replaced; InvalidInput if it is missing."""
    try:
        status = path.stat()
    except OSError as exc:
        raise InvalidInput(f"image {path} cannot be read: {exc}", image=str(path)) from exc
    return path, status.st_mtime_ns, status.st_size


class ImageCache(Generic[T]):
    """What `make` made of an image file, the least recently used dropped first. Not safe for several threads.

    `size` gives a value's share of `limit` (bytes, say). A value that is larger than the limit is made but not kept.
    """

    def __init__(self, make: Callable[[Path], T], *, size: Callable[[T], int], limit: int) -> None:
        self._make = make
        self._size = size
        self._limit = limit
        self._held = 0
        self._values: OrderedDict[FileVersion, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, path: Path) -> T:
        key = file_version(path)
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._make(path)
        if self._size(value) > self._limit:
            return value
        self._values[key] = value
        self._held += self._size(value)
        while self._held > self._limit:
            _, dropped = self._values.popitem(last=False)
            self._held -= self._size(dropped)
        return value
