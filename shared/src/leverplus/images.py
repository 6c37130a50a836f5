"""Images of prompts: reading them, and telling a file from its replacement."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from leverplus.errors import InvalidInput

MOST_PIXELS = 64_000_000
"""Of an image: decoded, and once more as RGB, it takes half a gigabyte. A file of some hundred kilobytes may claim far more."""

FileVersion = tuple[Path, int, int, int, int]


@contextmanager
def opened(source: Path | bytes) -> Generator[Image.Image]:
    """The image with its header read; whatever goes wrong with it is InvalidInput naming the file, so also an image of more than
    MOST_PIXELS. `source`: a file, or a file's bytes."""
    name = "that was sent" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if not 0 < image.width * image.height <= MOST_PIXELS:
                size = f"{image.width} × {image.height} pixels"
                raise InvalidInput(f"image {name} has {size}, at most {MOST_PIXELS:,} are read; shrink it", image=name)
            yield image
    except (InvalidInput, MemoryError):
        raise
    except Exception as exc:
        # What Pillow's readers raise for a broken file is told nowhere: RuntimeError, AttributeError, NotImplementedError, ...
        # Of bytes that it does not know it tells where in memory they lie.
        reason = "it is no image, or of a format that is not known" if isinstance(exc, UnidentifiedImageError) else exc
        raise InvalidInput(f"image {name} cannot be read: {reason}", image=name) from exc


def read_image(source: Path | bytes) -> Image.Image:
    """The decoded RGB image; InvalidInput naming the file if it is missing, broken, no image or has more than MOST_PIXELS."""
    with opened(source) as image:
        return image.convert("RGB")


def file_version(path: Path) -> FileVersion:
    """Changes when the file is replaced, also by one of the same size and time; InvalidInput if it is missing."""
    try:
        status = path.stat()
    except OSError as exc:
        raise InvalidInput(f"image {path} cannot be read: {exc}", image=str(path)) from exc
    return path, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
