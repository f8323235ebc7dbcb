"""How long a running chat waits while a long text is rendered, made into tokens and counted.

    python -m benchmarks.language.counting [--model FOLDER] [--shape llama-2M] [--tokens 200000] [--rounds 9]
        [--output FILE.json]

One answer runs. In each round its gaps between tokens are taken in a quiet stretch (p99 over all rounds, and
the longest of each round), then while ``handle.count`` works on one message of so many tokens: plain, and
with 2,000 of the model's own markers, which have to be told from structure. Each is counted once as it is and
once with Python's threads handing over its lock as seldom as usual (``usual``), by turns. What is told is the
longest gap of each, the median of the rounds, over the quiet p99, and how busy the machine was. Without
``--model`` the weights are random, and the tokenizer is one of byte pairs that is made on the spot.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import string
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlxengine import GenerateParams, InferenceEngine, Message, ModelConfiguration, TextDelta, TextHandle
from mlxengine.errors import CancelledError
from mlxengine.toolkit import aside

from benchmarks.shapes import SHAPES, write_checkpoint
from benchmarks.sides import at

MOST = 1.5  # what is aimed at
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


class Ticks(threading.Thread):
    """The times at which the tokens of one long answer come."""

    def __init__(self, model: TextHandle) -> None:
        super().__init__(daemon=True)
        self.times: list[float] = []
        params = GenerateParams(max_tokens=20_000, ignore_eos=True, temperature=0)
        self.stream = model.stream("Tell me all that you know.", params)
        self.start()

    def run(self) -> None:
        with contextlib.suppress(CancelledError):  # at the end
            for event in self.stream:
                if isinstance(event, TextDelta):
                    self.times.append(time.perf_counter())

    def gaps(self, work: Callable[[], object]) -> list[float]:
        """The gaps that lie, at least partly, within the time of the work."""
        began = time.perf_counter()
        work()
        ended = time.perf_counter()
        time.sleep(0.3)
        times = list(self.times)
        return [b - a for a, b in itertools.pairwise(times) if b >= began and a <= ended]


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """Hand over as seldom as Python does by itself."""
    ours, aside._HAND_OVER = aside._HAND_OVER, 1.0
    try:
        yield
    finally:
        aside._HAND_OVER = ours


def words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=8)) for _ in range(count))


def byte_pairs(folder: Path, size: int) -> None:
    """A tokenizer of byte pairs in a checkpoint's folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 8000),
        special_tokens=[AddedToken("<s>", special=True), AddedToken("</s>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([words(20_000, 1)], trainer)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; random weights of --shape if left out")
    parser.add_argument("--shape", default="llama-2M", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.model
        if folder is None:
            folder = Path(place) / "model"
            write_checkpoint(folder, SHAPES[options.shape])
            byte_pairs(folder, 8000)
        found = measure(folder, options.tokens, options.rounds)
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, tokens: int, rounds: int) -> dict[str, object]:
    configuration = ModelConfiguration(id=str(folder), context_length=2 * tokens)
    with InferenceEngine() as engine, engine.load_text(configuration) as model:
        plain = words(1000, 2)
        plain = words(1000 * tokens // len(model.tokenize(plain)), 3)
        works = {"plain": plain, "with markers": plain.replace("z", "z</s>", 2000)}
        counted = {name: model.count([Message.user(text)]) for name, text in works.items()}
        quiet: list[float] = []
        ways = {name: (text, contextlib.nullcontext) for name, text in works.items()}
        ways |= {f"{name}, usual": (text, seldom) for name, text in works.items()}
        longest: dict[str, list[float]] = {name: [] for name in ("nothing", *ways)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            ticks = Ticks(model)
            while len(ticks.times) < 50:  # the first ones compile
                time.sleep(0.1)
            still = ticks.gaps(lambda: time.sleep(2))
            quiet += still
            longest["nothing"].append(max(still))
            for name, (text, way) in ways.items():
                began = time.perf_counter()
                with way():
                    longest[name].append(max(ticks.gaps(lambda text=text: model.count([Message.user(text)]))))
                seconds[name].append(time.perf_counter() - began - 0.3)
            ticks.stream.close()
    p99 = at(sorted(quiet), 0.99)
    return {
        "tokens": counted,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "quiet_ms": 1000 * statistics.median(quiet),
        "quiet_p99_ms": 1000 * p99,
        "aimed_at": MOST,
        "longest_ms": {name: [round(1000 * item, 1) for item in row] for name, row in longest.items()},
        "count_seconds": {name: statistics.median(row) for name, row in seconds.items()},
        "longest_over_quiet_p99": {name: statistics.median(row) / p99 for name, row in longest.items()},
    }


if __name__ == "__main__":
    main()
