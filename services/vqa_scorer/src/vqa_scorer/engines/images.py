"""Images of prompts: reading them, and keeping what was made of them within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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
    """What `make` made of image files, the least recently used dropped first. Not safe for several threads.

    `make` gives a value for each path of a list without repeats. `size` gives a value's share of `limit` (bytes, say). A value
    that is larger than the limit is made but not kept.
    """

    def __init__(self, make: Callable[[Sequence[Path]], list[T]], *, size: Callable[[T], int], limit: int) -> None:
        self._make = make
        self._size = size
        self._limit = limit
        self._held = 0
        self._values: OrderedDict[FileVersion, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, paths: Iterable[Path]) -> dict[Path, T]:
        """The value of each path; those that are not kept are made together."""
        versions = {path: file_version(path) for path in dict.fromkeys(paths)}
        found: dict[Path, T] = {}
        for path, version in versions.items():
            if version in self._values:
                self._values.move_to_end(version)
                found[path] = self._values[version]
        missing = [path for path in versions if path not in found]
        if missing:
            for path, value in zip(missing, self._make(missing), strict=True):
                self._keep(versions[path], value)
                found[path] = value
        return found

    def _keep(self, version: FileVersion, value: T) -> None:
        if self._size(value) > self._limit:
            return
        self._values[version] = value
        self._held += self._size(value)
        while self._held > self._limit:
            _, dropped = self._values.popitem(last=False)
            self._held -= self._size(dropped)
