"""Draw how a picture comes out of noise, from a real run of the trained tiny model.

``.venv/bin/python scripts/draw_steps.py docs/pictures/diffusion-steps.png``. Above, what the model takes the
picture for at a step (its latents without the noise that it sees in them); the last is the picture itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlxengine import Array, ImagePreview, ImageReady, ImageRequest, InferenceEngine
from PIL import Image, ImageDraw

MODEL = Path(__file__).resolve().parent.parent / "tests" / "models" / "tiny-shapes-sd"
PROMPTS = ("a large red circle on a white background", "a small blue cross on a yellow background")
STEPS, SHOWN = 12, (1, 2, 3, 4, 6, 8, 12)
SIDE, GAP, MARGIN, TEXT = 112, 8, 16, 22


def run() -> dict[str, dict[int, Array]]:
    """Pixels of every step, by prompt; the last step's are those of the finished picture."""
    found: dict[str, dict[int, Array]] = {}
    with InferenceEngine() as engine, engine.load_images(MODEL) as model:
        for prompt in PROMPTS:
            request = ImageRequest(prompt=prompt, steps=STEPS, guidance=3.0, seed=1, preview_every=1)
            steps = found[prompt] = {}
            for event in model.stream(request):
                if isinstance(event, ImagePreview):
                    steps[event.step] = event.pixels
                elif isinstance(event, ImageReady):
                    steps[STEPS] = event.pixels
    return found


def draw(found: dict[str, dict[int, Array]]) -> Image.Image:
    """One row a prompt, one column a step."""
    row = TEXT + SIDE + GAP
    width = 2 * MARGIN + len(SHOWN) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + TEXT + len(found) * row), "white")
    pen = ImageDraw.Draw(sheet)
    for column, step in enumerate(SHOWN):
        x = MARGIN + column * (SIDE + GAP)
        pen.text((x, MARGIN), f"step {step} of {STEPS}", fill="#475569", font_size=13)
        for number, (prompt, steps) in enumerate(found.items()):
            y = MARGIN + TEXT + number * row
            if column == 0:
                pen.text((x, y), f"“{prompt}”", fill="#0f172a", font_size=14)
            pixels = Image.fromarray(steps[step].numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(pixels, (x, y + TEXT))
    return sheet


if __name__ == "__main__":
    draw(run()).save(sys.argv[1], optimize=True)
