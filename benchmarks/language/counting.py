"""How long a running chat waits while a long text is rendered, made into tokens and counted.

    python -m benchmarks.language.counting [--model FOLDER] [--shape llama-2M] [--tokens 200000] [--rounds 9]
        [--output FILE.json]

One answer runs. In each round its gaps between tokens are taken in a quiet stretch of two seconds, then, in
an order that is drawn anew, in stretches of about the time that counting takes: in which nothing runs
(``nothing``), another process takes one core and shares nothing else with this one (``a busy core``), and
``handle.count`` works on one message of so many tokens. That is plain, or has 2,000 of the model's own
markers in it, which have to be told from structure. Each is counted as it is, with Python's threads handing
over its lock as seldom as usual (``usual``), and with the encoder in a process of its own (``apart``; with
less of the cores than the chat, ``apart, nice``).

What is aimed at is told first: the longest gap of a stretch, the median of the rounds, over the p99 of all
quiet gaps. Beside it stands like over like: the longest gap over the longest of a stretch of that length in
which nothing runs, and the p99 of all gaps in such stretches over the quiet p99. Without ``--model`` the
weights are random, and the tokenizer is one of byte pairs that is made on the spot.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import statistics
import string
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlxengine import GenerateParams, InferenceEngine, Message, ModelConfiguration, TextDelta, TextHandle
from mlxengine.errors import CancelledError
from mlxengine.toolkit import aside, plain_text

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


class Apart:
    """A process of its own, which does what it is asked for; ``nice``: as much less of the cores it gets."""

    def __init__(self, work: Callable[[Any, int, str], None], nice: int, file: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=work, args=(there, nice, file), daemon=True)
        self._process.start()

    def spin(self, seconds: float) -> None:
        self._pipe.send(seconds)
        self._pipe.recv()

    def encode(self, tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
        """In the place of `plain_text.token_ids`."""
        if len(text) < 100_000:
            return _token_ids(tokenizer, text, add_special_tokens=add_special_tokens)
        self._pipe.send_bytes(text.encode())
        told, found = array("I", self._pipe.recv_bytes()), list[int]()
        for begins in range(0, len(told), 8192):  # piece by piece: Python's lock is free between them
            found += told[begins : begins + 8192]
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.join()


_token_ids = plain_text.token_ids


def _spins(pipe: Any, nice: int, _file: str) -> None:
    os.nice(nice)
    while True:
        until = pipe.recv() + time.perf_counter()
        while time.perf_counter() < until:
            pass
        pipe.send(None)


def _encodes(pipe: Any, nice: int, file: str) -> None:
    from tokenizers import Tokenizer

    os.nice(nice)
    tokenizer = Tokenizer.from_file(file)
    while True:
        (found,) = tokenizer.encode_batch_fast([pipe.recv_bytes().decode()], add_special_tokens=False)
        pipe.send_bytes(array("I", found.ids).tobytes())


@contextlib.contextmanager
def put(place: object, name: str, value: object) -> Iterator[None]:
    """Have a value in the place of another."""
    ours = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, ours)


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
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(InferenceEngine())
        model = stack.enter_context(engine.load_text(configuration))

        def apart(work: Callable[[Any, int, str], None], nice: int) -> Apart:
            made = Apart(work, nice, str(folder / "tokenizer.json"))
            stack.callback(made.close)
            return made

        plain = words(1000, 2)
        plain = words(1000 * tokens // len(model.tokenize(plain)), 3)
        texts = {"plain": plain, "with markers": plain.replace("z", "z</s>", 2000)}
        counted = {name: model.count([Message.user(text)]) for name, text in texts.items()}
        encoders = {"apart": apart(_encodes, 0).encode, "apart, nice": apart(_encodes, 10).encode}
        ways: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
            "": contextlib.nullcontext,
            ", usual": lambda: put(aside, "_HAND_OVER", 1.0),
            **{
                f", {name}": lambda way=way: put(plain_text, "token_ids", way)
                for name, way in encoders.items()
            },
        }

        def count(name: str, way: str) -> None:
            with ways[way]():
                if model.count([Message.user(texts[name])]) != counted[name]:
                    raise RuntimeError(f"{name}{way}: another count")

        long = min(_seconds(lambda: count("plain", "")) for _ in range(3))
        spinning = apart(_spins, 0)
        works: dict[str, Callable[[], None]] = {
            "nothing": lambda: time.sleep(long),
            "a busy core": lambda: spinning.spin(long),
        }
        for name, way in itertools.product(texts, ways):
            works[f"{name}{way}"] = lambda name=name, way=way: count(name, way)
        for work in works.values():
            work()  # what starts, starts here
        quiet: list[float] = []
        found: dict[str, list[list[float]]] = {name: [] for name in works}
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            ticks = Ticks(model)
            while len(ticks.times) < 50:  # the first ones compile
                time.sleep(0.1)
            quiet += ticks.gaps(lambda: time.sleep(2))
            for name in random.sample(list(works), len(works)):
                work = works[name]
                found[name].append(
                    ticks.gaps(lambda work=work, name=name: seconds[name].append(_seconds(work)))
                )
            ticks.stream.close()
    p99 = _p99(quiet)
    longest = {name: [max(row) for row in rows] for name, rows in found.items()}
    median = {name: statistics.median(row) for name, row in longest.items()}
    return {
        "tokens": counted,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "aimed_at": MOST,
        "longest_over_quiet_p99": {name: item / p99 for name, item in median.items()},
        "longest_over_longest_of_nothing": {name: item / median["nothing"] for name, item in median.items()},
        "p99_over_quiet_p99": {
            name: _p99(list(itertools.chain(*rows))) / p99 for name, rows in found.items()
        },
        "quiet_ms": 1000 * statistics.median(quiet),
        "quiet_p99_ms": 1000 * p99,
        "longest_ms": {name: [round(1000 * item, 1) for item in row] for name, row in longest.items()},
        "seconds": {name: statistics.median(row) for name, row in seconds.items()},
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _p99(gaps: list[float]) -> float:
    return at(sorted(gaps), 0.99)


if __name__ == "__main__":
    main()
