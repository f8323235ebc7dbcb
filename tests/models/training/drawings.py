"""One shape on a plain background: prompts, pictures, and whether a picture shows what its prompt says."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

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
SIZES = {"small": (0.22, 0.30), "large": (0.52, 0.66), "": (0.34, 0.60)}
BACKGROUNDS = ("white", "black", "blue", "yellow", "")
WORDS = ("a", *COLOURS, *SHAPES, "small", "large", "on", "background", "picture", "of")
LIGHT, DARK = (235.0, 235.0, 235.0), (60.0, 60.0, 60.0)


@dataclass(frozen=True)
class Drawing:
    """What a prompt says. An empty size or background leaves it open."""

    colour: str
    shape: str
    size: str
    background: str

    @property
    def prompt(self) -> str:
        words = " ".join(word for word in ("a", self.size, self.colour, self.shape) if word)
        return f"{words} on a {self.background} background" if self.background else words


ALL = tuple(
    Drawing(*parts)
    for parts in itertools.product(COLOURS, SHAPES, SIZES, BACKGROUNDS)
    if parts[0] != parts[3]
)


def render(shape: Tensor, size: Tensor, centre: Tensor, front: Tensor, back: Tensor) -> Tensor:
    """Draw a batch, antialiased.

    Args:
        shape: (n,) index into `SHAPES`.
        size: (n,) diameter as a share of the picture's side.
        centre: (n, 2) x and y from 0 to 1.
        front, back: (n, 3) colours from 0 to 255.

    Returns:
        (n, 3, 64, 64) from -1 to 1.
    """
    count, wide = len(shape), SIDE * 2
    axis = (torch.arange(wide, device=shape.device) + 0.5) / wide
    x = axis[None, None, :] - centre[:, 0, None, None]
    y = axis[None, :, None] - centre[:, 1, None, None]
    r = (size / 2)[:, None, None]
    distance, bar = torch.sqrt(x * x + y * y), r * 0.34
    circle = distance < r
    masks = {
        "circle": circle,
        "square": (x.abs() < r * 0.9) & (y.abs() < r * 0.9),
        "triangle": (y < r * 0.85) & (y > -r) & (x.abs() < (y + r) / 1.85 * 1.05),
        "ring": circle & (distance > r * 0.58),
        "cross": ((x.abs() < bar) & (y.abs() < r)) | ((y.abs() < bar) & (x.abs() < r)),
    }
    stacked = torch.stack([masks[name] for name in SHAPES], 1)
    mask = stacked[torch.arange(count, device=shape.device), shape].float()
    mask = functional.avg_pool2d(mask[:, None], 2)
    image = front[:, :, None, None] * mask + back[:, :, None, None] * (1 - mask)
    return image / 127.5 - 1


class Painter:
    """Draws random pictures for the prompts of `ALL`."""

    def __init__(self, device: str) -> None:
        def tensor(values: list[object], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._device = device
        self._front = tensor([COLOURS[item.colour] for item in ALL])
        self._back = tensor([self._background(item) for item in ALL])
        self._shape = tensor([SHAPES.index(item.shape) for item in ALL], torch.long)
        self._sizes = tensor([SIZES[item.size] for item in ALL])

    @staticmethod
    def _background(item: Drawing) -> tuple[float, ...]:
        if item.background:
            return COLOURS[item.background]
        return DARK if item.colour == "white" else LIGHT

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures (count, 3, 64, 64) from -1 to 1, and the index of each one's prompt in `ALL`."""
        which = torch.randint(len(ALL), (count,), device=self._device)
        low, high = self._sizes[which].unbind(1)
        size = low + (high - low) * torch.rand(count, device=self._device)
        room = (0.5 - size / 2 - 0.04).clamp(min=0) * 0.6
        centre = 0.5 + (torch.rand(count, 2, device=self._device) * 2 - 1) * room[:, None]
        front = (self._front[which] + torch.randn(count, 3, device=self._device) * 5).clamp(0, 255)
        back = (self._back[which] + torch.randn(count, 3, device=self._device) * 4).clamp(0, 255)
        return render(self._shape[which], size, centre, front, back), which


def judge(image: Tensor, drawing: Drawing) -> dict[str, bool]:
    """Whether a picture, (3, 64, 64) from 0 to 255, has the colour, shape and background of its prompt.

    The background is the median of the border, the colour the mean of what differs from it, and the shape
    the one whose drawing in the same place overlaps most.
    """
    names, table = list(COLOURS), torch.tensor(list(COLOURS.values()), dtype=torch.float32)

    def nearest(colour: Tensor) -> str:
        return names[int((table - colour).pow(2).sum(1).argmin())]

    border = torch.cat([image[:, :3].flatten(1), image[:, -3:].flatten(1)], 1).median(1).values
    mask = (image - border[:, None, None]).abs().sum(0) > 90
    if mask.sum() < 20:
        return {"colour": False, "shape": False, "background": False}
    rows, columns = torch.where(mask)
    size = max(rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) / SIDE
    middle = [(axis.min() + axis.max() + 1).item() / (2 * SIDE) for axis in (columns, rows)]

    def overlap(name: str) -> float:
        centre = torch.tensor([middle])
        if name == "triangle":
            centre[0, 1] += 0.04 * size
        # a square is drawn smaller than its circle, a triangle wider
        diameter = size[None] * {"square": 1 / 0.9, "triangle": 1 / 1.05}.get(name, 1.0)
        white, black = torch.full((1, 3), 255.0), torch.zeros(1, 3)
        drawn = render(torch.tensor([SHAPES.index(name)]), diameter, centre, white, black)[0, 0] > 0
        return float((drawn & mask).sum() / (drawn | mask).sum())

    return {
        "colour": nearest(image[:, mask].mean(1)) == drawing.colour,
        "shape": max(SHAPES, key=overlap) == drawing.shape,
        "background": not drawing.background or nearest(border) == drawing.background,
    }
