"""Pictures: one coloured shape on a textured ground inside a frame, 56×56 pixels.

What matters for the answers is the colour, the shape and, for the hidden operation, the frame. Ground, position and size take up
most of the picture and mean nothing. Only additions, products, comparisons and square roots are used, so that a scene has the
same pixels on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from leverplus.dataset.invented_words.words import pick
from leverplus.random_order import derive_seed, random_keys

SIDE = 56
FRAME_WIDTH = 7
_DASH = 7

Frame = Literal["white", "black", "dashed"]
Texture = Literal["stripes", "checks", "dots", "clouds", "gradient"]
FRAMES: tuple[Frame, ...] = get_args(Frame)
TEXTURES: tuple[Texture, ...] = get_args(Texture)

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]
_Plane = npt.NDArray[np.float64]

PAINT: dict[str, Colour] = {
    "red": (222, 36, 38),
    "green": (38, 172, 58),
    "blue": (44, 84, 232),
    "yellow": (250, 214, 40),
    "purple": (158, 48, 196),
}
_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, -2))
_TURNS = ((1, 0), (4, 1), (2, 1), (4, 3), (1, 1), (4, -1), (2, -1), (4, -3))

_ROWS, _COLUMNS = (axis.astype(np.float64) for axis in np.mgrid[0:SIDE, 0:SIDE])
TINT = 8.0
_EDGE = np.minimum(np.minimum(_ROWS, SIDE - 1 - _ROWS), np.minimum(_COLUMNS, SIDE - 1 - _COLUMNS))
_PIXEL_IDS = np.arange(SIDE * SIDE, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture is drawn from. `centre` (column, row) and `radius` in pixels; `grain` seeds the noise."""

    colour: str
    shape: str
    frame: Frame
    texture: Texture
    tones: tuple[Colour, Colour]
    period: int
    direction: tuple[int, int]
    centre: tuple[float, float]
    radius: float
    turn: tuple[int, int]
    grain: int


def draw_scene(colour: str, shape: str, frame: Frame, seed: int) -> Scene:
    """A scene that shows these; all else follows from the seed."""
    random = Random(derive_seed("scene", seed))
    radius = 9.0 + 4.0 * random.random()
    margin = FRAME_WIDTH + radius
    room = SIDE - 1 - 2 * margin
    return Scene(
        colour=colour,
        shape=shape,
        frame=frame,
        texture=pick(random, TEXTURES),
        tones=(_tone(random), _tone(random)),
        period=5 + int(random.random() * 10),
        direction=pick(random, _DIRECTIONS),
        centre=(margin + room * random.random(), margin + room * random.random()),
        radius=radius,
        turn=pick(random, _TURNS),
        grain=derive_seed("grain", seed),
    )


def render(scene: Scene) -> Pixels:
    """[56, 56, 3]."""
    mix = _ground(scene)[..., None]
    first, second = (np.array(tone, dtype=np.float64) for tone in scene.tones)
    picture = first * (1.0 - mix) + second * mix
    cover = np.clip(0.5 - _distance(scene), 0.0, 1.0)[..., None]
    picture = picture * (1.0 - cover) + np.array(PAINT[scene.colour], dtype=np.float64) * cover
    picture += _noise(scene.grain, 14.0)[..., None]
    inside = _EDGE >= FRAME_WIDTH
    picture = np.where(inside[..., None], picture, _frame(scene.frame)[..., None])
    return np.floor(np.clip(picture, 0.0, 255.0) + 0.5).astype(np.uint8)


def _tone(random: Random) -> Colour:
    """A greyish colour of any brightness: every ground is duller than every paint."""
    level = 40.0 + 180.0 * random.random()
    return (
        int(level + TINT * (random.random() - 0.5)),
        int(level + TINT * (random.random() - 0.5)),
        int(level + TINT * (random.random() - 0.5)),
    )


def _ground(scene: Scene) -> _Plane:
    """Share of the second tone [56, 56] in 0 to 1."""
    period = float(scene.period)
    along, across = scene.direction
    length = float(np.sqrt(float(along * along + across * across)))
    run = (_COLUMNS * along + _ROWS * across) / length
    side = (_ROWS * along - _COLUMNS * across) / length
    match scene.texture:
        case "stripes":
            return (np.mod(run, period) < period / 2).astype(np.float64)
        case "checks":
            return ((np.mod(run, period) < period / 2) ^ (np.mod(side, period) < period / 2)).astype(np.float64)
        case "dots":
            dx, dy = np.mod(run, period) - period / 2, np.mod(side, period) - period / 2
            return (dx * dx + dy * dy < (0.32 * period) ** 2).astype(np.float64)
        case "gradient":
            return (run - run.min()) / (run.max() - run.min())
        case "clouds":
            return _clouds(scene.grain)


def _clouds(seed: int) -> _Plane:
    """Noise of 8 pixels' grain, interpolated."""
    coarse = _uniform(derive_seed("clouds", seed), 64).reshape(8, 8)
    place = np.arange(SIDE) / 8.0
    low = np.floor(place).astype(np.int64)
    high, part = np.minimum(low + 1, 7), place - low
    rows = coarse[low] * (1.0 - part)[:, None] + coarse[high] * part[:, None]
    return rows[:, low] * (1.0 - part) + rows[:, high] * part


def _distance(scene: Scene) -> _Plane:
    """Signed distance [56, 56] in pixels from the shape's edge, negative inside; roughly, where edges meet."""
    right, down = _COLUMNS - scene.centre[0], _ROWS - scene.centre[1]
    a, b = scene.turn
    length = float(np.sqrt(float(a * a + b * b)))
    x, y = (right * a + down * b) / length, (down * a - right * b) / length
    wide, tall, r = np.abs(x), np.abs(y), scene.radius
    match scene.shape:
        case "circle":
            return np.sqrt(x * x + y * y) - r
        case "square":
            return np.maximum(wide, tall) - 0.84 * r
        case "triangle":
            return np.maximum(y - 0.8 * r, 0.87 * wide - 0.49 * (y + r))
        case "cross":
            return np.minimum(np.maximum(wide - 0.32 * r, tall - r), np.maximum(tall - 0.32 * r, wide - r))
        case "ring":
            return np.abs(np.sqrt(x * x + y * y) - 0.72 * r) - 0.28 * r
        case _:
            raise ValueError(f"no shape {scene.shape!r}")


def _frame(frame: Frame) -> _Plane:
    """Brightness [56, 56] of the frame; only its edge is used."""
    match frame:
        case "white":
            return np.full((SIDE, SIDE), 255.0)
        case "black":
            return np.zeros((SIDE, SIDE))
        case "dashed":
            return np.where(np.mod(_ROWS + _COLUMNS, 2.0 * _DASH) < _DASH, 255.0, 0.0)


def _noise(seed: int, width: float) -> _Plane:
    """[56, 56], even between -width/2 and width/2."""
    return (_uniform(seed, SIDE * SIDE).reshape(SIDE, SIDE) - 0.5) * width


def _uniform(seed: int, count: int) -> _Plane:
    keys = random_keys(_PIXEL_IDS[:count], seed)
    return (keys >> np.uint64(11)).astype(np.float64) / float(1 << 53)
