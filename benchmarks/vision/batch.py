"""Sixteen mixed requests with pictures: what the engine and mlx-vlm's own batch generator give.

    python -m benchmarks.vision.batch MODEL_FOLDER [--tokens 24] [--pictures 16] [--rounds 5] [--output FILE]

Same answers: each request (other picture, size, number of pictures, temperature, seed) is served alone and
then with the others; how many answers stay the same, greedy and sampled ones apart. mlx-vlm's ``insert``
takes no sampler, so the batch gets the first request's, as its server does. Speed: all requests greedy, of
one length, all at once; tokens over the wall time and over processor time (which other work on the machine
disturbs less), medians of alternating rounds (ABAB). A burst: so many requests at once, each about a picture
of its own, all of one size; seconds to the median first token and to the end of the last answer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlxengine import GenerateParams, ImagePart, InferenceEngine, Message, TextPart  # noqa: E402
from mlxengine.toolkit.dtype import upcast_for_cpu  # noqa: E402
from mlxengine.toolkit.loading import descriptor_limit_kept  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

with descriptor_limit_kept():
    from mlx_vlm import load
    from mlx_vlm.generate.ar import BatchGenerator
    from mlx_vlm.prompt_utils import apply_chat_template
    from mlx_vlm.sample_utils import make_sampler
    from mlx_vlm.utils import prepare_inputs

QUESTIONS = ("What shape is this?", "Describe the picture as JSON.", "How many shapes are there?")


@frozen(kw_only=True)
class Asked:
    """One request of the mix."""

    question: str
    pictures: tuple[Any, ...]
    temperature: float
    seed: int
    tokens: int

    @property
    def params(self) -> GenerateParams:
        return GenerateParams(
            temperature=self.temperature, seed=self.seed, max_tokens=self.tokens, ignore_eos=True
        )


def mix(tokens: int) -> list[Asked]:
    """Text alone, one picture, two pictures; three sizes; every second one sampled."""
    rng = random.Random(11)
    found = []
    for number in range(16):
        pictures = []
        for _ in range((1, 1, 2, 1, 0)[number % 5]):
            side = rng.choice((64, 100, 256))
            picture = Image.new("RGB", (side, side), rng.choice(["gray", "silver", "teal"]))
            x, y = rng.randrange(side // 2), rng.randrange(side // 2)
            box = [x, y, x + side // 4, y + side // 4]
            colour = rng.choice(["red", "green", "blue", "yellow", "white"])
            getattr(ImageDraw.Draw(picture), rng.choice(["ellipse", "rectangle"]))(box, fill=colour)
            pictures.append(picture)
        found.append(
            Asked(
                question=QUESTIONS[number % 3],
                pictures=tuple(pictures),
                temperature=(0.0, 1.5)[number % 2],
                seed=number,
                tokens=tokens + number % 4,
            )
        )
    return found


def burst(count: int, turn: int) -> list[Asked]:
    """Requests about one picture each, all of one size; other pictures each turn."""
    found = []
    for number in range(count):
        picture = Image.new("RGB", (256, 256), (8 * number % 256, 40 * turn % 256, 120))
        box = [8 * number % 128, 60, 8 * number % 128 + 64, 124]
        ImageDraw.Draw(picture).ellipse(box, fill="red")
        found.append(
            Asked(question=QUESTIONS[1], pictures=(picture,), temperature=0.0, seed=number, tokens=8)
        )
    return found


class Reference:
    """mlx-vlm alone: its processor, its embeddings, its batch generator."""

    def __init__(self, folder: str) -> None:
        self.network, self.processor = load(folder, lazy=True, trust_remote_code=False)
        if mx.default_device() == mx.cpu:
            upcast_for_cpu(self.network)
        mx.eval(self.network.parameters())
        self.processor.tokenizer.stopping_criteria = _Never()
        self.first: dict[int, float] = {}  # when each request's first token came

    def answers(self, requests: list[Asked]) -> list[tuple[int, ...]]:
        first = requests[0]
        mx.random.seed(first.seed)
        generator = BatchGenerator(
            self.network.language_model, self.processor, sampler=make_sampler(temp=first.temperature)
        )
        order: dict[int, int] = {}
        for number, asked in enumerate(requests):
            text = apply_chat_template(
                self.processor, self.network.config, asked.question, num_images=len(asked.pictures)
            )
            made = prepare_inputs(
                self.processor, images=list(asked.pictures) or None, prompts=text, add_special_tokens=True
            )
            ids, mask = made.pop("input_ids"), made.pop("attention_mask")
            pixels = made.pop("pixel_values", None)
            merged = self.network.get_input_embeddings(ids, pixels, mask=mask, **made).to_dict()
            options = {name: value for name, value in merged.items() if value is not None}
            (uid,) = generator.insert(ids.tolist(), [asked.tokens], prompt_kwargs=[options])
            order[uid] = number
        found: list[list[int]] = [[] for _ in requests]
        self.first = {}
        while generator.has_work:
            for answer in generator.next()[1]:
                found[order[answer.uid]].append(answer.token)
                self.first.setdefault(answer.uid, time.perf_counter())
        generator.close()
        return [tuple(tokens) for tokens in found]


class _Never:
    """A stopping criterion that never holds."""

    def __call__(self, _token: int) -> bool:
        return False

    def add_eos_token_ids(self, _tokens: Any) -> None:
        """There are none."""


class Ours:
    """The engine, with nothing kept between requests: every round has to do the same work."""

    def __init__(self, engine: InferenceEngine, folder: str) -> None:
        self.handle: Any = engine.load(folder, features={"vlm.prompt_cache": False})
        self.first: dict[int, float] = {}  # when each request's first token came

    def answers(self, requests: list[Asked]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = [()] * len(requests)
        self.first = {}

        def ask(number: int, asked: Asked) -> None:
            parts = [*(ImagePart(picture) for picture in asked.pictures), TextPart(asked.question)]
            events = []
            for event in self.handle.stream([Message.user(parts)], asked.params):
                self.first.setdefault(number, time.perf_counter())
                events.append(event)
            found[number] = tuple(token for event in events for token in getattr(event, "token_ids", ()))

        threads = [threading.Thread(target=ask, args=item) for item in enumerate(requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def same(side: Any, requests: list[Asked]) -> dict[str, str]:
    """How many answers are the same together as alone."""
    alone = [side.answers([asked])[0] for asked in requests]
    together = side.answers(requests)
    found = {}
    for name, sampled in (("greedy", False), ("sampled", True)):
        pairs = [
            one == other
            for asked, one, other in zip(requests, alone, together, strict=True)
            if bool(asked.temperature) is sampled
        ]
        found[name] = f"{sum(pairs)} of {len(pairs)}"
    return found


def rates(side: Any, requests: list[Asked]) -> tuple[float, float]:
    """Tokens per second of the wall's clock, and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    tokens = sum(map(len, side.answers(requests)))
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - processor)


def seconds(side: Any, requests: list[Asked]) -> tuple[float, float]:
    """Seconds to the median first token, and to the end of the last answer."""
    began = time.perf_counter()
    side.answers(requests)
    return statistics.median(side.first.values()) - began, time.perf_counter() - began


def summary(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians of both sides, and the median and spread of the rounds' ratios."""
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    return {
        "ours": float(f"{statistics.median(mine for mine, _ in pairs):.4g}"),
        "mlx_vlm": float(f"{statistics.median(theirs for _, theirs in pairs):.4g}"),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--pictures", type=int, default=16, metavar="N", help="requests of the burst")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--machine", default="", help="what kind of machine this is, for the record")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    requests = mix(options.tokens)
    greedy = [evolve(asked, temperature=0.0, tokens=options.tokens) for asked in requests]
    reference = Reference(options.model)
    with InferenceEngine() as engine:
        ours = Ours(engine, options.model)
        found: dict[str, Any] = {
            "machine": options.machine,
            "model": Path(options.model).name,
            "same_answers_as_alone": {"ours": same(ours, requests), "mlx_vlm": same(reference, requests)},
        }
        rounds, bursts = [], []
        for turn in range(options.rounds + 1):
            sides = (ours, reference) if turn % 2 else (reference, ours)
            measured = {side: rates(side, greedy) for side in sides}
            waited = {side: seconds(side, burst(options.pictures, turn)) for side in sides}
            if turn:  # the first round warms up
                rounds.append((measured[ours], measured[reference]))
                bursts.append((waited[ours], waited[reference]))
    found["tokens_per_second"] = summary([(mine[0], theirs[0]) for mine, theirs in rounds])
    found["tokens_per_processor_second"] = summary([(mine[1], theirs[1]) for mine, theirs in rounds])
    found["burst"] = {
        "requests": options.pictures,
        "first_token_seconds": summary([(mine[0], theirs[0]) for mine, theirs in bursts]),
        "seconds": summary([(mine[1], theirs[1]) for mine, theirs in bursts]),
    }
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
