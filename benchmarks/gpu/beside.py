"""A chat beside embeddings and a picture on a GPU: how long it waits, and what sharing the device costs.

    python -m benchmarks.gpu.beside [--shape llama-1B] [--new 256] [--texts 16] [--steps 20] [--rounds 5]
        [--seconds 540] [--output FILE.jsonl] [--tiny]

Each of them alone, then all at once, in each round after one that warms up: the chat's longest gap between
two tokens over the sum of one step of each as it is alone (of denoising, a request of ``--texts`` texts, a
token of its own), by the medians of these and by the longest of the others', and the time of all over the sum
of each alone. Random weights: the shape named, BERT base,
and Stable Diffusion 1.5 at 512 × 512. A model that cannot be loaded here is left out, and that is said.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlxengine import (
    EmbedRequest,
    GenerateParams,
    ImageReady,
    ImageRequest,
    InferenceEngine,
    MLXEngineError,
    Progress,
    TextDelta,
    TextRequest,
)

from benchmarks.embeddings.shapes import write as write_encoder
from benchmarks.pictures.repositories import MODELS, small, write, write_random
from benchmarks.sides import TINY, Report, checkpoint, parser, prompts

TEXT = "the quick brown fox jumps over a lazy dog and runs into the wood where it sleeps until night "


def _loaded(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except MLXEngineError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


class Work:
    """What each model is asked for; every job returns the moments at which it had something to show."""

    def __init__(self, engine: InferenceEngine, scratch: Path, options: Any) -> None:
        self.options = options
        self.chat: Any = engine.load_text(
            checkpoint(options.shape), features={"llm.prompt_cache": False, **dict(options.features)}
        )
        bert, sd = scratch / "bert", scratch / "sd"
        bert.mkdir()
        sd.mkdir()
        write_encoder(bert, *(("minilm", "float32") if options.tiny else ("bert-base", "float16")))
        self.embed = _loaded(lambda: engine.load_embeddings(bert))
        dtype = "float32" if options.tiny else "float16"
        model = small(MODELS["sd-1.5"]) if options.tiny else MODELS["sd-1.5"]
        write(model, sd, partial(write_random, dtype=dtype))
        self.side = 64 if options.tiny else 512
        self.picture = _loaded(lambda: engine.load_images(sd, features={"diffusion.dtype": dtype}))

    def jobs(self, number: int) -> dict[str, Callable[[], list[float]]]:
        found: dict[str, Callable[[], list[float]]] = {"chat": lambda: self._chat(number)}
        if self.embed is not None:
            found["embeddings"] = self._embed
        if self.picture is not None:
            found["picture"] = self._draw
        return found

    def _chat(self, number: int) -> list[float]:
        (prompt,) = prompts(1, 64, number, 8000)
        params = GenerateParams(max_tokens=self.options.new, temperature=0, ignore_eos=True)
        events = self.chat.stream(TextRequest(prompt_tokens=prompt, params=params))
        return [time.perf_counter() for event in events if isinstance(event, TextDelta)]

    def _embed(self) -> list[float]:
        texts = tuple(TEXT[i % 7 :] * 4 for i in range(self.options.texts))
        found = [time.perf_counter()]
        for _ in range(self.options.batches):
            for _event in self.embed.stream(EmbedRequest(texts=texts)):
                pass
            found.append(time.perf_counter())
        return found

    def _draw(self) -> list[float]:
        size = (self.side, self.side)
        wanted = ImageRequest(
            prompt="a red circle", size=size, guidance=7.5, steps=self.options.steps, seed=1
        )
        events = self.picture.stream(wanted)
        return [time.perf_counter() for event in events if isinstance(event, Progress | ImageReady)]


def together(jobs: dict[str, Callable[[], list[float]]]) -> tuple[float, dict[str, list[float]]]:
    """Seconds of all at once, and the moments of each."""
    moments: dict[str, list[float]] = {}
    threads = [
        threading.Thread(target=lambda name=name, job=job: moments.update({name: job()}))
        for name, job in jobs.items()
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, moments


def one_round(work: Work, number: int) -> dict[str, float]:
    alone, step, most = {}, {}, {}
    for name, job in work.jobs(number).items():
        alone[name], moments = together({name: job})
        gaps = [b - a for a, b in itertools.pairwise(moments[name])]
        # bytes of a text that is no text yet come with what completes it, so the chat's are averaged
        step[name] = statistics.fmean(gaps) if name == "chat" else statistics.median(gaps)
        most[name] = step[name] if name == "chat" else max(gaps)
    seconds, moments = together(work.jobs(number))
    longest = max(b - a for a, b in itertools.pairwise(moments["chat"]))
    return {
        **{f"{name}_alone_seconds": value for name, value in alone.items()},
        **{f"{name}_step_ms": 1000 * value for name, value in step.items()},
        "longest_gap_ms": 1000 * longest,
        "longest_gap_in_steps": longest / sum(step.values()),
        "longest_gap_in_longest_steps": longest / sum(most.values()),
        "together_seconds": seconds,
        "over_the_sum": seconds / sum(alone.values()),
    }


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--new", type=int, default=256)
    made.add_argument("--texts", type=int, default=16)
    made.add_argument("--batches", type=int, default=100, help="requests for embeddings, one after another")
    made.add_argument("--steps", type=int, default=20)
    options = made.parse_args()
    if options.tiny:
        options.shape, options.new, options.batches, options.steps = TINY, 24, 5, 4
    report = Report(options)
    with tempfile.TemporaryDirectory() as scratch, InferenceEngine() as engine:
        work = Work(engine, Path(scratch), options)
        for number in report.rounds(1):
            report.add(what="beside", shape=options.shape, round=number, **one_round(work, number))
    warm = [row for row in report.rows if row["round"]]

    def of(key: str, scale: str) -> str:
        values = sorted(row[key] for row in warm)
        return f"{statistics.median(values):{scale}} ({values[0]:{scale}} to {values[-1]:{scale}})"

    scales = {"seconds": ".2f", "ms": ".1f", "steps": ".2f", "sum": ".3f"}
    report.table(
        {"what": lambda row: row[0].replace("_", " "), "median (spread)": lambda row: row[1]},
        [(key, of(key, scales[key.rsplit("_", 1)[1]])) for key in (warm or [{}])[0] if "_" in key],
    )


if __name__ == "__main__":
    main()
