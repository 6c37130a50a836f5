"""Images of prompts: reading them, and telling a file from its replacement."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from leverplus.errors import InvalidInput

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
