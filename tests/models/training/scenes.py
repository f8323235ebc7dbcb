"""Pictures of shapes on a 3 × 3 grid, and questions about them with their answers."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

SIDE = 64
OVERSAMPLE = 2
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
BACKGROUNDS = ((128, 128, 128), (170, 200, 220), (200, 180, 160), (90, 110, 100))
TASKS = ("colour", "shape", "count", "countc", "exist", "where", "digit", "json", "text", "two")


@dataclass
class Thing:
    """A shape, or a handwritten digit (``digit`` is its index in scikit-learn's set), in one cell."""

    colour: str
    cell: int
    shape: str = ""
    digit: int | None = None
    radius: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass
class Sample:
    """Pictures (each a list of things), a question and its answer."""

    pictures: list[list[Thing]]
    question: str
    answer: str


class Scenes:
    """Draws samples. Every fifth digit of scikit-learn's set is kept for the test."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        digits = load_digits()
        self._images = torch.tensor(digits.images / 16.0, dtype=torch.float32)
        self._labels = digits.target
        indices = np.arange(len(self._labels))
        self._split = {"train": indices[indices % 5 != 0], "test": indices[indices % 5 == 0]}

    def sample(self, task: str, split: str = "train") -> Sample:
        """One sample of a task (see `TASKS`)."""
        return getattr(self, f"_{task}")(split)

    def _things(self, count: int) -> list[Thing]:
        rng = self.rng
        return [
            Thing(
                rng.choice(list(COLOURS)),
                cell,
                rng.choice(SHAPES),
                radius=rng.uniform(0.55, 0.95),
                shift=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
            )
            for cell in rng.sample(range(9), count)
        ]

    def _colour(self, split: str) -> Sample:
        things = self._things(self.rng.randint(1, 3))
        asked = things[0]
        for other in things[1:]:
            other.shape = self.rng.choice([shape for shape in SHAPES if shape != asked.shape])
        word = self.rng.choice(["colour", "color"])
        return Sample([things], f"What {word} is the {asked.shape}?", asked.colour)

    def _shape(self, split: str) -> Sample:
        (thing,) = things = self._things(1)
        question = self.rng.choice(["What shape is this?", "Which shape is in the picture?"])
        return Sample([things], question, thing.shape)

    def _count(self, split: str) -> Sample:
        number = self.rng.randint(1, 6)
        question = self.rng.choice(["How many shapes are there?", "How many objects are in the picture?"])
        return Sample([self._things(number)], question, NUMBERS[number])

    def _countc(self, split: str) -> Sample:
        things = self._things(self.rng.randint(1, 6))
        present = self.rng.random() < 0.8
        colour = self.rng.choice([thing.colour for thing in things] if present else list(COLOURS))
        number = sum(thing.colour == colour for thing in things)
        return Sample([things], f"How many {colour} shapes are there?", NUMBERS[number])

    def _exist(self, split: str) -> Sample:
        things = self._things(self.rng.randint(1, 4))
        asked = self.rng.choice(things)
        colour, shape = asked.colour, asked.shape
        if self.rng.random() < 0.5:
            colour, shape = self.rng.choice(list(COLOURS)), self.rng.choice(SHAPES)
        there = any((thing.colour, thing.shape) == (colour, shape) for thing in things)
        return Sample([things], f"Is there a {colour} {shape}?", "yes" if there else "no")

    def _where(self, split: str) -> Sample:
        while True:
            one, other = things = self._things(2)
            if one.shape != other.shape and one.cell % 3 != other.cell % 3:
                side = "left" if one.cell % 3 < other.cell % 3 else "right"
                return Sample([things], f"Is the {one.shape} left or right of the {other.shape}?", side)

    def _digit(self, split: str) -> Sample:
        index = int(self.rng.choice(self._split[split]))
        thing = Thing(self.rng.choice(list(COLOURS)), 4, digit=index)
        question = self.rng.choice(["What digit is this?", "Which number is shown?"])
        return Sample([[thing]], question, str(self._labels[index]))

    def _json(self, split: str) -> Sample:
        (thing,) = things = self._things(1)
        answer = json.dumps({"colour": thing.colour, "shape": thing.shape})
        return Sample([things], "Describe the picture as JSON.", answer)

    def _text(self, split: str) -> Sample:
        left, right = self.rng.randint(0, 4), self.rng.randint(0, 4)
        return Sample([], f"What is {left} plus {right}?", str(left + right))

    def _two(self, split: str) -> Sample:
        left, right = self._things(1), self._things(1)
        if self.rng.random() < 0.5:
            right[0].colour = left[0].colour
        same = "yes" if left[0].colour == right[0].colour else "no"
        return Sample([left, right], "Do both pictures show the same colour?", same)

    def render(self, pictures: list[list[Thing]], device: str) -> Tensor:
        """The pictures as (count, 3, 64, 64) float32, whole numbers from 0 to 255."""
        wide = SIDE * OVERSAMPLE
        grounds = [self.rng.choice(BACKGROUNDS) for _ in pictures]
        image = torch.tensor(grounds, device=device, dtype=torch.float32)[:, :, None, None]
        image = image.expand(-1, 3, wide, wide).clone()
        for slot in range(max(map(len, pictures), default=0)):
            indices = [index for index, things in enumerate(pictures) if len(things) > slot]
            things = [pictures[index][slot] for index in indices]
            mask = self._masks(things, device)[:, None]
            colour = torch.tensor([COLOURS[thing.colour] for thing in things], device=device)
            image[indices] = image[indices] * (1 - mask) + colour[:, :, None, None] * mask
        small = functional.avg_pool2d(image, OVERSAMPLE)
        return (small + torch.randn_like(small) * 4).clamp(0, 255).round()

    def _masks(self, things: list[Thing], device: str) -> Tensor:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None, None]

        wide = SIDE * OVERSAMPLE
        axis = (torch.arange(wide, device=device) + 0.5) / wide
        dx = axis[None, None, :] - column([(t.cell % 3 + 0.5 + t.shift[0]) / 3 for t in things])
        dy = axis[None, :, None] - column([(t.cell // 3 + 0.5 + t.shift[1]) / 3 for t in things])
        r = column([thing.radius / 6 for thing in things])
        drawn = {
            "circle": dx * dx + dy * dy < r * r,
            "square": (dx.abs() < r * 0.85) & (dy.abs() < r * 0.85),
            "triangle": (dy < r * 0.8) & (dy > -r) & (dx.abs() < (dy + r) * 0.6),
        }
        mask = torch.zeros(len(things), wide, wide, device=device)
        for index, thing in enumerate(things):
            if thing.digit is None:
                mask[index] = drawn[thing.shape][index].float()
                continue
            side = wide * 3 // 4
            digit = self._images[thing.digit][None, None].to(device)
            digit = functional.interpolate(digit, size=(side, side), mode="bilinear")[0, 0]
            x, y = (self.rng.randint(0, wide - side) for _ in range(2))
            mask[index, y : y + side, x : x + side] = digit
        return mask
