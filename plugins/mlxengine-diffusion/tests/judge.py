"""Whether a picture of the trained tiny model shows what its prompt says: colour, shape and background."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from attrs import frozen

SIDE = 64
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 130, 30),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")


@frozen
class Scene:
    """What a prompt asks for; an empty background leaves it open."""

    colour: str
    shape: str
    background: str

    @property
    def prompt(self) -> str:
        return f"a {self.colour} {self.shape}" + (
            f" on a {self.background} background" if self.background else ""
        )


def scenes(count: int) -> list[Scene]:
    """Scenes spread over all combinations, always the same ones."""
    every = [
        Scene(*parts)
        for parts in itertools.product(COLOURS, SHAPES, ("white", "black", "blue", "yellow", ""))
        if parts[0] != parts[2]
    ]
    order = np.random.RandomState(1).permutation(len(every))
    return [every[index] for index in order[:count]]


def judge(pixels: np.ndarray[Any, Any], scene: Scene) -> tuple[bool, bool, bool]:
    """Colour, shape and background of a (64, 64, 3) uint8 picture, each right or not.

    The background is the median of the border, the colour the mean of what differs from it, and the shape
    the one whose drawing in the same box overlaps most.
    """
    image = pixels.astype(np.float64)
    border = np.median(np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)]), axis=0)
    mask = np.abs(image - border).sum(axis=2) > 90
    if mask.sum() < 20:
        return False, False, False
    rows, columns = np.nonzero(mask)
    size = max(np.ptp(rows), np.ptp(columns)) + 1
    middle = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    shape = max(SHAPES, key=lambda name: _overlap(mask, _drawn(name, size, middle)))
    colour = _nearest(image[mask].mean(axis=0))
    return (
        colour == scene.colour,
        shape == scene.shape,
        not scene.background or _nearest(border) == scene.background,
    )


def _nearest(colour: np.ndarray[Any, Any]) -> str:
    return min(COLOURS, key=lambda name: float(((np.array(COLOURS[name]) - colour) ** 2).sum()))


def _overlap(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def _drawn(shape: str, size: float, middle: tuple[float, float]) -> np.ndarray[Any, Any]:
    """The shape as the model was taught it, filling a box of that size around the middle."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    x, y, r = x - middle[0], y - middle[1], size / 2
    distance = np.sqrt(x * x + y * y)
    if shape == "circle":
        return distance < r
    if shape == "ring":
        return (distance < r) & (distance > 0.58 * r)
    if shape == "square":
        return (np.abs(x) < r) & (np.abs(y) < r)
    if shape == "triangle":
        return (y < r) & (y > -r) & (np.abs(x) < (y + r) / 2)
    return ((np.abs(x) < 0.34 * r) & (np.abs(y) < r)) | ((np.abs(y) < 0.34 * r) & (np.abs(x) < r))
