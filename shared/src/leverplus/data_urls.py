"""Image files as data URLs (RFC 2397), the form in which chat completions take them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from leverplus.errors import InvalidInput, NotInstalled

_MIB_READ = 64


def data_url(source: Path | bytes) -> str:
    """The file's own bytes where it is JPEG, PNG or WebP, else its picture as PNG. `source`: a file, or a file's bytes.

    InvalidInput if it cannot be read; NotInstalled where another format needs Pillow. A file of the three is not looked into.
    """
    content = source if isinstance(source, bytes) else _read(source)
    kind = _kind(content)
    if kind is None:
        kind, content = "image/png", _as_png(source)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MIB_READ * 2**20 + 1)
    except OSError as exc:
        raise InvalidInput(f"image {path} cannot be read: {exc}", image=str(path)) from exc
    if len(content) > _MIB_READ * 2**20:
        raise InvalidInput(f"image {path} has more than {_MIB_READ} MiB; shrink it", image=str(path))
    return content


def _kind(content: bytes) -> str | None:
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    return None


def _as_png(source: Path | bytes) -> bytes:
    try:
        from leverplus.images import read_image
    except ImportError as exc:
        name = "an image that is neither JPEG, PNG nor WebP"
        raise NotInstalled(what=name, extra="pillow", reason=str(exc), hint="install it, or convert the image") from exc
    stream = io.BytesIO()
    read_image(source).save(stream, "PNG")
    return stream.getvalue()
