"""Pictures of the kind that the tiny model was trained on, drawn with PIL, and the words for them."""

from __future__ import annotations

import random
from typing import Any

from attrs import frozen
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 30),
    "purple": (140, 50, 170),
    "orange": (245, 135, 20),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
GREYS = ((128, 128, 128), (170, 200, 220), (200, 180, 160), (90, 110, 100))


@frozen
class Thing:
    """A shape in one of the nine cells of a picture; radius 0.55 to 0.95 of half a cell."""

    shape: str
    colour: str
    cell: int = 4
    radius: float = 0.8


def draw(things: list[Thing], *, size: int = 64, background: tuple[int, int, int] = GREYS[0]) -> Any:
    """An RGB picture of the things, twice oversampled."""
    side = size * 2
    found = Image.new("RGB", (side, side), background)
    pen = ImageDraw.Draw(found)
    for thing in things:
        x, y = (thing.cell % 3 + 0.5) * side / 3, (thing.cell // 3 + 0.5) * side / 3
        r, fill = thing.radius * side / 6, COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        elif thing.shape == "square":
            pen.rectangle([x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r], fill=fill)
        else:
            pen.polygon([(x, y - r), (x - 1.08 * r, y + 0.8 * r), (x + 1.08 * r, y + 0.8 * r)], fill=fill)
    return found.resize((size, size), Image.Resampling.BOX)


def scene(rng: random.Random, count: int) -> list[Thing]:
    """So many random things in different cells."""
    return [
        Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)), cell, rng.uniform(0.6, 0.9))
        for cell in rng.sample(range(9), count)
    ]
