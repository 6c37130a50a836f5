"""A picture of one prompt: the chosen demonstrations in order, then the query and what the VLM answered."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from leverplus.files import atomic_file

_TILE = 224
_MARGIN = 16
_TEXT_HEIGHT = 112
_FONT_SIZE = 15


@dataclass(frozen=True)
class Tile:
    """An image with a heading and lines of text below it."""

    heading: str
    image: Path
    lines: tuple[str, ...]
    is_query: bool = False


def draw_contact_sheet(tiles: Sequence[Tile], path: Path) -> None:
    """Writes the tiles side by side as a PNG."""
    width = _MARGIN + len(tiles) * (_TILE + _MARGIN)
    sheet = Image.new("RGB", (width, _MARGIN * 3 + _FONT_SIZE + _TILE + _TEXT_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for number, tile in enumerate(tiles):
        left, top = _MARGIN + number * (_TILE + _MARGIN), _MARGIN
        draw.text((left, top), tile.heading, fill="black", font=font)
        top += _FONT_SIZE + 8
        with Image.open(tile.image) as image:
            # Nearest: the images are small, and what the VLM sees should be seen.
            sheet.paste(image.convert("RGB").resize((_TILE, _TILE), Image.Resampling.NEAREST), (left, top))
        border = "crimson" if tile.is_query else "gray"
        draw.rectangle((left - 1, top - 1, left + _TILE, top + _TILE), outline=border, width=3 if tile.is_query else 1)
        text = "\n".join(part for line in tile.lines for part in textwrap.wrap(line, 28) or [""])
        draw.multiline_text((left, top + _TILE + 8), text, fill="black", font=font, spacing=4)
    with atomic_file(path) as stream:
        sheet.save(stream, format="PNG")
