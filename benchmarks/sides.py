"""What the benchmarks on a GPU share: both sides on the same weights, a budget of time, JSON lines.

Checkpoints have random weights in a shape of shapes.py, ``-4bit`` after its name quantizes them; they are
written once into the folder for temporary files and kept there.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxengine.toolkit import blas

blas.load()

import mlx.core as mx  # noqa: E402
from attrs import define, field, frozen  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlxengine import AsyncInferenceEngine, Event, GenerateParams, TextDelta, TextRequest  # noqa: E402
from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu  # noqa: E402
from mlxengine.toolkit.loading import descriptor_limit_kept  # noqa: E402

with descriptor_limit_kept():
    from mlx_lm.generate import BatchGenerator, stream_generate
    from mlx_lm.utils import load

from benchmarks.shapes import BIG, SHAPES, write_checkpoint  # noqa: E402

TINY = "llama-2M"
STEADY = 1.25  # times the quickest `processor_ms` of a run: a round is left out of `steady` beyond it
ADMITS, TOGETHER = 0.5, 32  # mlx_lm.server: seconds between looks at what came in; --decode-concurrency


def parser(text: str) -> argparse.ArgumentParser:
    """The options that all of these benchmarks have."""
    made = argparse.ArgumentParser(description=text.splitlines()[0])
    made.add_argument("--shape", default="llama-1B", help="of shapes.py; with -4bit, quantized")
    made.add_argument("--tiny", action="store_true", help="a small shape and short prompts: does it work?")
    made.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    made.add_argument("--seconds", type=float, default=540.0, help="stop after so many, with what there is")
    made.add_argument("--output", type=Path, help="JSON lines, written as they come")
    made.add_argument(
        "--readers",
        choices=("tasks", "threads"),
        default="tasks",
        help="of the engine's answers: tasks of one event loop, as in a server, or a thread each",
    )
    made.add_argument("--features", type=flag, nargs="*", default=[], help="of the engine: llm.name=JSON")
    return made


def flag(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


@define
class Report:
    """Rows as they come, to the screen and to a file, until the time is up."""

    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(factory=list)
    _began: float = field(factory=time.monotonic)

    def __attrs_post_init__(self) -> None:
        if self.options.output:
            self.options.output.write_text("")

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return float(self.options.seconds - (time.monotonic() - self._began))

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self.options.output:
            with self.options.output.open("a") as file:
                file.write(line + "\n")

    def rounds(self, share: int) -> Iterator[int]:
        """Numbers of rounds, the warm-up's 0 first, while a part of the time that is left lasts.

        At least one more than the warm-up is made, as long as there is any time.
        """
        end = time.monotonic() + self.left / share
        longest = 0.0
        for number in range(self.options.rounds + 1):
            began = time.monotonic()
            if (number > 1 and began + longest > end) or self.left < longest:
                return
            yield number
            longest = max(longest * (number > 1), time.monotonic() - began)

    def table(self, columns: dict[str, Callable[[dict[str, Any]], object]], rows: Sequence[Any]) -> None:
        """A table in Markdown."""
        if rows:
            print("\n| " + " | ".join(columns) + " |\n|" + "-|" * len(columns))
        for row in rows:
            print("| " + " | ".join(str(show(row)) for show in columns.values()) + " |")


@frozen
class Came:
    """When the tokens of some requests came.

    Args:
        asked: when each request was made, in seconds from the start.
        at: when each token of each of them came.
    """

    asked: Sequence[float]
    at: Sequence[Sequence[float]]

    def figures(self) -> dict[str, float]:
        """Tokens per second over all, and times in milliseconds."""
        firsts = sorted(row[0] - asked for asked, row in zip(self.asked, self.at, strict=True))
        gaps = sorted(b - a for row in self.at for a, b in itertools.pairwise(row))
        return {
            "tokens_per_second": sum(map(len, self.at)) / max(row[-1] for row in self.at),
            "first_ms": 1000 * statistics.median(firsts),
            "first_p99_ms": 1000 * at(firsts, 0.99),
            "last_first_ms": 1000 * firsts[-1],
            "gap_ms": 1000 * statistics.median(gaps),
            "gap_p99_ms": 1000 * at(gaps, 0.99),
        }


def at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def prompts(count: int, length: int, seed: int, vocabulary: int) -> list[list[int]]:
    """Prompts that share no beginning, of tokens that have a text."""
    rng = random.Random(1000 * seed + length)
    return [[rng.randrange(300, vocabulary) for _ in range(length)] for _ in range(count)]


def checkpoint(name: str) -> Path:
    """The folder of a shape, written when it is first asked for. On a CPU weights are fp32."""
    shape = name.removesuffix("-4bit")
    dtype = "float32" if mx.default_device() == mx.cpu else "bfloat16"
    folder = Path(tempfile.gettempdir(), "mlxengine-benchmarks", dtype, name)
    if not (folder / "tokenizer_config.json").exists():
        write_checkpoint(folder, {**SHAPES, **BIG}[shape], dtype, None if name == shape else 4)
    return folder


class Sides:
    """The engine and mlx-lm, each with the weights of one checkpoint.

    Args:
        folder: the checkpoint.
        streams: most requests that are served together, on both sides.
        flags: features of the engine's side.
        readers: of the engine's answers, see `parser`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        streams: int = TOGETHER,
        flags: dict[str, object] | None = None,
        readers: str = "tasks",
    ) -> None:
        self.streams = max(streams, TOGETHER)
        self.readers = readers
        self._runner = asyncio.Runner()
        self.engine = AsyncInferenceEngine()
        wanted: dict[str, object] = {
            "llm.prompt_cache": False,
            "llm.max_batch": self.streams,
            **(flags or {}),
        }
        self._tasks: Any = self._runner.run(self.engine.load(folder, features=wanted))
        self.handle: Any = self.engine.sync.load(folder, features=wanted)  # the same model
        self.network, self.tokenizer = load(str(folder), lazy=True)[:2]
        if mx.default_device() == mx.cpu:
            unpack_where_faster(self.network, 1 << 40)
            upcast_for_cpu(self.network)
        mx.eval(self.network.parameters())
        self.tokenizer.eos_token_ids = set()
        self.vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])

    def close(self) -> None:
        self._runner.run(self.engine.close())
        self._runner.close()

    def prompts(self, count: int, length: int, seed: int) -> list[list[int]]:
        return prompts(count, length, seed, self.vocabulary)

    def ours(self, wanted: Sequence[list[int]], new: int, asked: Sequence[float] | None = None) -> Came:
        """Serve requests that are made at given seconds, at once if ``None``."""
        asked = asked or [0.0] * len(wanted)
        came: list[list[float]] = [[] for _ in wanted]
        params = GenerateParams(max_tokens=new, temperature=0, ignore_eos=True)
        requests = [TextRequest(prompt_tokens=one, params=params) for one in wanted]

        def note(i: int, event: Event) -> None:
            if isinstance(event, TextDelta):
                came[i].extend([time.perf_counter() - start] * len(event.token_ids))

        def read(i: int) -> None:
            time.sleep(max(0.0, start + asked[i] - time.perf_counter()))
            for event in self.handle.stream(requests[i]):
                note(i, event)

        async def read_beside(i: int) -> None:
            if asked[i]:
                await asyncio.sleep(max(0.0, start + asked[i] - time.perf_counter()))
            async for event in self._tasks.stream(requests[i]):
                note(i, event)

        async def read_all() -> None:
            await asyncio.gather(*(read_beside(i) for i in range(len(wanted))))

        start = time.perf_counter()
        if self.readers == "tasks":
            self._runner.run(read_all())
        else:
            threads = [threading.Thread(target=read, args=(i,)) for i in range(len(wanted))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if any(len(row) != new for row in came):
            raise RuntimeError(f"{sum(len(row) != new for row in came)} answers are not whole")
        return Came(asked, came)

    def theirs(
        self, wanted: Sequence[list[int]], new: int, asked: Sequence[float] | None = None, every: float = 0.0
    ) -> Came:
        """The same on a ``BatchGenerator``.

        ``every``: while it has work, what came in meanwhile is let in after so many seconds of steps, as
        ``ResponseGenerator._generate`` of mlx_lm.server has it (its ``TimeBudget``). 0: before every step.
        """
        asked = asked or [0.0] * len(wanted)
        waiting = [(when, i) for i, when in enumerate(asked)]
        heapq.heapify(waiting)
        generator = BatchGenerator(self.network, max_tokens=new, completion_batch_size=self.streams)
        came: list[list[float]] = [[] for _ in wanted]
        names: dict[int, int] = {}
        live = 0
        start = time.perf_counter()
        while waiting or live:
            now = time.perf_counter() - start
            if not live and waiting[0][0] > now:
                time.sleep(waiting[0][0] - now)
                now = waiting[0][0]
            due = []
            while waiting and waiting[0][0] <= now:
                due.append(heapq.heappop(waiting)[1])
            if due:
                names.update(zip(generator.insert([wanted[i] for i in due]), due, strict=True))
                live += len(due)
            looked = time.perf_counter()
            while live:
                answers = generator.next()[1]
                moment = time.perf_counter() - start
                for answer in answers:
                    came[names[answer.uid]].append(moment)
                    live -= answer.finish_reason is not None
                if time.perf_counter() - looked > every or not every:
                    break
        generator.close()
        return Came(asked, came)

    def alone(self, prompt: list[int], new: int) -> Came:
        """One request on ``stream_generate``."""
        start = time.perf_counter()
        answers = stream_generate(self.network, self.tokenizer, prompt, max_tokens=new)
        return Came([0.0], [[time.perf_counter() - start for _ in answers]])


@contextmanager
def sides(name: str, **more: Any) -> Iterator[Sides]:
    """Both sides of a shape, closed afterwards."""
    made = Sides(checkpoint(name), **more)
    try:
        yield made
    finally:
        made.close()


def alternate(
    report: Report, share: int, ours: Callable[[int], Came], theirs: Callable[[int], Came]
) -> dict[str, Any]:
    """Rounds in alternating order (ABBA): for each figure, medians, and the ratio with its spread.

    The first round of each side, in which the device compiles, is left out. ``steady`` are the ratios of the
    rounds in which the processor was as quick for one side as for the other, see `processor_ms`.
    """
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in report.rounds(share):
        found: dict[bool, dict[str, float]] = {}
        for mine in (True, False) if number % 2 else (False, True):
            before = processor_ms()
            figures = (ours if mine else theirs)(number).figures()
            found[mine] = {**figures, "processor_ms": max(before, processor_ms())}
        if number:
            pairs.append((found[True], found[False]))
    row: dict[str, Any] = {"rounds": len(pairs)}
    quickest = min((side["processor_ms"] for pair in pairs for side in pair), default=0.0)
    steady = [pair for pair in pairs if max(side["processor_ms"] for side in pair) < STEADY * quickest]
    row["steady"] = {
        "rounds": len(steady),
        **{
            key: statistics.median(mine[key] / max(theirs[key], 1e-9) for mine, theirs in steady)
            for key in (steady[0][0] if steady else ())
        },
    }
    for key in pairs[0][0] if pairs else ():
        ratios = sorted(mine[key] / max(theirs[key], 1e-9) for mine, theirs in pairs)
        row[key] = {
            "ours": statistics.median(mine[key] for mine, _ in pairs),
            "mlx_lm": statistics.median(theirs[key] for _, theirs in pairs),
            "ratio": statistics.median(ratios),
            "spread": [ratios[0], ratios[-1]],
            "each": [[round(side[key], 2) for side in pair] for pair in pairs],
        }
    return row


def processor_ms() -> float:
    """Milliseconds of a fixed loop in this thread, the best of five.

    A virtual processor that shares its core with somebody takes up to twice as long for the same; so does
    whatever one thread launches from it.
    """

    def once() -> float:
        began = time.perf_counter()
        total = 0
        for number in range(40_000):
            total += number
        return 1000 * (time.perf_counter() - began)

    return min(once() for _ in range(5))


@frozen
class Limits:
    """What the device can do at best, measured here: bytes copied and floating point operations a second."""

    bandwidth: float
    flops: float

    @classmethod
    def measure(cls, *, tiny: bool = False) -> Limits:
        """Bytes read and written by ``x + 1``, and a square product in bf16 (fp32 on a CPU)."""
        size, side = (1 << 24, 512) if tiny else (1 << 31, 8192)
        kind = mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16
        flat = mx.zeros(size // kind.size, kind)
        square = mx.random.normal((side, side)).astype(kind)
        mx.eval(flat, square)
        copy = best(lambda: mx.eval(flat + 1))
        product = best(lambda: mx.eval(square @ square))
        return cls(2 * size / copy, 2 * side**3 / product)


def best(work: Callable[[], None], times: int = 10) -> float:
    """Least seconds."""
    found = []
    for _ in range(times + 2):
        mx.synchronize()
        began = time.perf_counter()
        work()
        mx.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[2:])


@frozen
class Load:
    """What a network moves and computes.

    Args:
        weights: bytes that a step of decoding reads.
        cache: bytes of the cache, a token.
        products: weights that a token is multiplied with, the output's left out.
        attention: operations of one token's attention to another.
    """

    weights: int
    cache: int
    products: int
    attention: int

    @classmethod
    def of(cls, network: Any) -> Load:
        args = network.args
        found: Any = dict(tree_flatten(network.parameters()))
        tied = bool(args.tie_word_embeddings)
        read = {k: v for k, v in found.items() if tied or "embed_tokens" not in k}
        width = args.head_dim or args.hidden_size // args.num_attention_heads
        per_layer = (
            args.hidden_size * width * 2 * (args.num_attention_heads + args.num_key_value_heads)
            + 3 * args.hidden_size * args.intermediate_size
        )
        size = 4 if mx.default_device() == mx.cpu else 2
        return cls(
            weights=sum(value.nbytes for value in read.values()),
            cache=2 * args.num_hidden_layers * args.num_key_value_heads * width * size,
            products=args.num_hidden_layers * per_layer,
            attention=4 * args.num_hidden_layers * args.num_attention_heads * width,
        )

    def shares(
        self, limits: Limits, figures: dict[str, float], n: int, length: int, new: int
    ) -> dict[str, float]:
        """How much of what the device can do was used: by decoding, and until the last first token."""
        moved = self.weights + n * self.cache * (length + new / 2)
        worked = n * (2 * self.products * length + self.attention * length * length / 2)
        return {
            "decode": moved / limits.bandwidth / (figures["gap_ms"] / 1000),
            "prompts": worked / limits.flops / (figures["last_first_ms"] / 1000),
        }


__all__ = [
    "ADMITS",
    "TINY",
    "Came",
    "Limits",
    "Load",
    "Report",
    "Sides",
    "alternate",
    "at",
    "parser",
    "sides",
]
