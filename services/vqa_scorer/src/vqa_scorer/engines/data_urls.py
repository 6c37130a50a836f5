"""Image files as data URLs (RFC 2397), the form in which chat completions take them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from leverplus.images import opened, read_image

_SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def data_url(path: Path) -> str:
    """The file's own bytes where it is JPEG, PNG or WebP, else its picture as PNG; InvalidInput if it cannot be read."""
    with opened(path) as image:
        kind = _SENT_AS_THEY_ARE.get(image.format or "")
        content = path.read_bytes() if kind else b""
    if kind is None:
        kind, stream = "image/png", io.BytesIO()
        read_image(path).save(stream, "PNG")
        content = stream.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
