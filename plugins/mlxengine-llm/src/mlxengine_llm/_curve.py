"""The loss of a training run, as a table (CSV) and as a picture (PNG)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from attrs import frozen

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (720, 420), 64, 24, 28, 44
_COLOURS = {"train": (31, 119, 180), "valid": (214, 106, 20)}
_GREY, _BLACK = (200, 200, 200), (60, 60, 60)


@frozen(kw_only=True)
class Point:
    """Losses in nats a token after so many iterations: ``train`` is the mean since the last point."""

    iteration: int
    train: float | None = None
    valid: float | None = None


class Curve:
    """The points of a run."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self.points = list(points)

    def add(self, point: Point) -> None:
        """One more point."""
        self.points.append(point)

    def write(self, folder: Path) -> None:
        """Write ``loss.csv`` and ``loss.png``."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["iteration", "train_loss", "valid_loss"])
        for point in self.points:
            cells = ("" if value is None else f"{value:.6f}" for value in (point.train, point.valid))
            table.writerow([point.iteration, *cells])
        replace(folder / "loss.csv", lambda file: file.write_text(text.getvalue()))
        picture = self.draw()
        replace(folder / "loss.png", lambda file: picture.save(file, format="PNG"))

    def draw(self) -> Any:
        """The curve as a PIL image."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", _SIZE, (255, 255, 255))
        pen = ImageDraw.Draw(image)
        values = [v for point in self.points for v in (point.train, point.valid) if v is not None]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        high = high if high > low else low + 1.0
        last = max((point.iteration for point in self.points), default=0) or 1
        width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM

        def place(iteration: float, loss: float) -> tuple[float, float]:
            return _LEFT + width * iteration / last, _TOP + height * (high - loss) / (high - low)

        for step in range(5):
            loss, iteration = low + (high - low) * step / 4, last * step / 4
            _, y = place(0, loss)
            pen.line([(_LEFT, y), (_SIZE[0] - _RIGHT, y)], fill=_GREY)
            pen.text((_LEFT - 8, y), f"{loss:.3g}", fill=_BLACK, anchor="rm")
            x, _ = place(iteration, low)
            pen.text((x, _SIZE[1] - _BOTTOM + 8), f"{iteration:.0f}", fill=_BLACK, anchor="ma")
        pen.text((_SIZE[0] / 2, _SIZE[1] - 6), "iterations", fill=_BLACK, anchor="mb")
        for row, (name, colour) in enumerate(_COLOURS.items()):
            line = [
                place(point.iteration, loss)
                for point in self.points
                if (loss := getattr(point, name)) is not None
            ]
            if not line:
                continue
            if len(line) > 1:
                pen.line(line, fill=colour, width=2)
            for x, y in line:
                pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
            pen.text((_SIZE[0] - _RIGHT, 4 + 12 * row), f"{name} loss", fill=colour, anchor="ra")
        return image


def replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there: it is the old one or the new one, never half of it."""
    scratch = file.with_name(f".new-{file.name}")
    try:
        write(scratch)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


__all__ = ["Curve", "Point", "replace"]
