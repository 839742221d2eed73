"""Pictures drawn from a seed, with captions that describe them in full.

A picture shows one, two or three shapes of one colour on a background of another. Place, size, angle, exact
hues and a soft noise vary, so two pictures with one caption differ. About one combination in nine is held
out: `boring-tiny` never sees it in training and is measured on it.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageChops, ImageDraw

NUMBERS = ("one", "two", "three")
COLOURS = {
    "red": (215, 30, 35),
    "green": (40, 150, 60),
    "blue": (35, 70, 205),
    "yellow": (245, 225, 40),
    "orange": (250, 135, 20),
    "purple": (125, 40, 160),
    "pink": (250, 150, 195),
    "brown": (115, 70, 35),
    "black": (20, 20, 22),
    "white": (245, 245, 243),
}

Outline = list[tuple[float, float]]


def _polygon(corners: int, radii: Sequence[float], start: float) -> Outline:
    """Corners at equal angles around the centre, with distances from `radii` in turn."""
    angles = (start + 2 * math.pi * i / corners for i in range(corners))
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _heart() -> Outline:
    steps = (2 * math.pi * i / 40 for i in range(40))
    return [
        (
            math.sin(t) ** 3 * 0.95,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in steps
    ]


_UP = -math.pi / 2
_ARM = 0.3
OUTLINES: dict[str, Outline] = {
    "circle": _polygon(48, (0.9,), 0),
    "square": _polygon(4, (1.0,), math.pi / 4),
    "triangle": _polygon(3, (1.0,), _UP),
    "diamond": _polygon(4, (1.0, 0.62), _UP),
    "star": _polygon(10, (1.0, 0.42), _UP),
    "heart": _heart(),
    "cross": [
        *[(-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)],
        *[(_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)],
    ],
    "ring": _polygon(48, (0.95,), 0),
}
"""Corners of each shape; its centre is (0, 0), no corner is further out than about 1, y points down."""

_RING_HOLE = 0.52
_CELLS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))


@dataclass(frozen=True)
class Combination:
    """The content of a caption: `number` of `NUMBERS`, `shape` of `OUTLINES`, colours of `COLOURS`."""

    number: str
    colour: str
    shape: str
    background: str

    @property
    def caption(self) -> str:
        """The one caption of the combination, e.g. `two red circles on a blue background`."""
        plural = "es" if self.shape == "cross" else "s"
        shape = self.shape if self.number == "one" else f"{self.shape}{plural}"
        article = "an" if self.background == "orange" else "a"
        return f"{self.number} {self.colour} {shape} on {article} {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether training leaves it out: by a checksum, so that near neighbours stay in."""
        return zlib.crc32(self.caption.encode()) % 9 == 0


def all_combinations() -> list[Combination]:
    """All combinations, in a fixed order; shape and background never share a colour."""
    every = product(NUMBERS, COLOURS, OUTLINES, COLOURS)
    return [
        Combination(number, colour, shape, background)
        for number, colour, shape, background in every
        if colour != background
    ]


def draw(combination: Combination, size: int, seed: int | Sequence[int]) -> Image.Image:
    """Draws a picture of a combination.

    Args:
        combination: What to show.
        size: Width and height in pixels.
        seed: One picture for each seed; numbers of 0 or more.

    Returns:
        An RGB image; equal arguments give equal pixels.
    """
    rng = np.random.default_rng(seed)
    scale = 4 if size <= 128 else 2  # drawn larger, then averaged down: smooth edges
    side = size * scale
    image = Image.new("RGB", (side, side), _hue(combination.background, rng))
    pen = ImageDraw.Draw(image)
    colour = _hue(combination.colour, rng)
    hole = image.getpixel((0, 0))
    for x, y, radius in _places(NUMBERS.index(combination.number) + 1, rng):
        angle = rng.uniform(-0.3, 0.3)
        pen.polygon(_corners(combination.shape, x, y, radius, angle, side), fill=colour)
        if combination.shape == "ring":
            pen.polygon(_corners("ring", x, y, radius * _RING_HOLE, angle, side), fill=hole)
    return _with_noise(image.reduce(scale), rng)


def _hue(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(COLOURS[name]) + rng.integers(-12, 13, 3), 0, 255).tolist()
    return red, green, blue


def _places(number: int, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centre and radius of each shape, as parts of the picture's side; the shapes never touch."""
    if number == 1:
        cells, half, smallest = [(0.5, 0.5)], 0.5, 0.18
    else:
        cells, half, smallest = [_CELLS[i] for i in rng.permutation(4)[:number]], 0.25, 0.14
    biggest = half * 0.76
    places = []
    for x, y in cells:
        radius = rng.uniform(smallest, biggest)
        room = half - radius - 0.02
        places.append((x + rng.uniform(-room, room), y + rng.uniform(-room, room), radius))
    return places


def _corners(shape: str, x: float, y: float, radius: float, angle: float, side: int) -> Outline:
    sine, cosine = math.sin(angle) * radius * side, math.cos(angle) * radius * side
    return [(x * side + u * cosine - v * sine, y * side + u * sine + v * cosine) for u, v in OUTLINES[shape]]


def _with_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Adds a soft grey noise, mostly less than 15 levels, as a camera would."""
    grain = Image.fromarray(rng.normal(128, 5, (32, 32)).clip(0, 255).astype(np.uint8))
    soft = grain.resize(image.size, Image.Resampling.BILINEAR)
    return ImageChops.add(image, Image.merge("RGB", (soft, soft, soft)), offset=-128)
