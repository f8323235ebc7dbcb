"""Measure a model on this machine: prefill, decode, a batch; vectors; or pictures.

The model is warmed up first, and one run is not counted. Each measurement is repeated; the table gives
mean ± deviation. --compare reads a result that was written with --output before, and says how each figure
changed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from .._units import human
from .._version import __version__
from ..engine import InferenceEngine
from ..errors import ConfigurationError, UnsupportedInputError
from ..handle import ModelHandle
from ..pictures.handle import ImageHandle
from ..pictures.requests import ImageRequest
from ..text.handle import TextHandle
from ..text.params import GenerateParams
from ..text.replies import TextReply
from ..vectors.handle import EmbeddingHandle
from . import _engine
from ._output import Output

_WORDS = "The quick brown fox jumps over the lazy dog while seven wizards mix nine bright potions. "


def configure(parser: argparse.ArgumentParser) -> None:
    _engine.add_model(parser)
    parser.add_argument("--repeats", type=_engine.positive, default=3, metavar="N")
    parser.add_argument("--prompt-words", type=_engine.positive, default=128, metavar="N")
    parser.add_argument(
        "--max-tokens", type=_engine.positive, default=32, metavar="N", help="tokens to decode"
    )
    parser.add_argument(
        "--batch", type=_engine.positive, default=4, metavar="N", help="requests or texts at once"
    )
    parser.add_argument("--steps", type=_engine.positive, default=4, metavar="N", help="of a picture")
    parser.add_argument("--size", type=_engine.size, default=None, metavar="WxH", help="of a picture")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier result to compare with")


def run(arguments: argparse.Namespace, out: Output) -> int:
    before = _read(arguments.compare) if arguments.compare else None
    with _engine.engine(arguments, out) as engine:
        began = time.perf_counter()
        handle = _engine.load(engine, arguments, out, warm_up=True)
        measure = _measurement(handle, arguments)
        measure()  # kernels are compiled and caches filled by the first run
        out.note(f"loaded and warmed up in {time.perf_counter() - began:.1f} s, which is not counted")
        runs: list[dict[str, float]] = []
        for number in range(arguments.repeats):
            runs.append(measure())
            out.note(f"run {number + 1} of {arguments.repeats}")
        result = _result(engine, handle, runs)
    if arguments.output:
        try:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise ConfigurationError(f"{arguments.output} cannot be written: {error.strerror}.") from error
    figures: dict[str, dict[str, float]] = result["figures"]  # type: ignore[assignment]

    def text() -> None:
        headers = ["figure", "mean", "± deviation", *(["before", "change"] if before else [])]
        rows = []
        for name, figure in figures.items():
            row = [name, f"{figure['mean']:.4g}", f"{figure['deviation']:.2g}"]
            old = (before or {}).get(name)
            if before:
                row += [f"{old['mean']:.4g}", f"{figure['mean'] / old['mean'] - 1:+.1%}"] if old else ["", ""]
            rows.append(row)
        out.line(f"{handle.id} on {engine.device.name} ({engine.device.backend})")
        out.table(headers, rows)
        peak = result["peak_memory_bytes"]
        if isinstance(peak, int):
            out.line(f"peak memory {human(peak)}")

    out.emit({**result, "before": before}, text)
    return 0


def _measurement(handle: ModelHandle, arguments: argparse.Namespace) -> Callable[[], dict[str, float]]:
    if isinstance(handle, TextHandle):
        return lambda: _text(handle, arguments)
    if isinstance(handle, EmbeddingHandle):
        return lambda: _embed(handle, arguments)
    if isinstance(handle, ImageHandle):
        return lambda: _image(handle, arguments)
    raise UnsupportedInputError(f"`mlxengine bench` does not know how to measure the kind {handle.kind!r}.")


def _prompt(words: int, salt: object) -> str:
    """Words that no cache has seen yet, since the first one differs."""
    return f"{salt} {(_WORDS * (words // 15 + 1))}"[: words * 6]


def _text(handle: TextHandle, arguments: argparse.Namespace) -> dict[str, float]:
    params = GenerateParams(max_tokens=arguments.max_tokens, temperature=0, ignore_eos=True)
    salt = time.monotonic_ns()
    alone = handle.generate(_prompt(arguments.prompt_words, salt), params)
    first = alone.metrics.first_event_seconds or alone.metrics.total_seconds
    rest = alone.metrics.total_seconds - first
    figures = {
        "first token, s": first,
        "prefill, tokens/s": (alone.usage.prompt_tokens - alone.usage.cached_tokens) / first,
    }
    if alone.usage.completion_tokens > 1 and rest > 0:
        figures["decode, tokens/s"] = (alone.usage.completion_tokens - 1) / rest
    start = time.perf_counter()
    streams = [
        handle.stream(_prompt(arguments.prompt_words, f"{salt} {number}"), params)
        for number in range(arguments.batch)
    ]
    replies = [TextReply.of(stream) for stream in streams]
    seconds = time.perf_counter() - start
    total = sum(reply.usage.completion_tokens for reply in replies)
    figures[f"batch of {arguments.batch}, tokens/s"] = total / seconds
    figures["peak memory, bytes"] = max(
        float(reply.metrics.peak_memory_bytes or 0) for reply in (alone, *replies)
    )
    return figures


def _embed(handle: EmbeddingHandle, arguments: argparse.Namespace) -> dict[str, float]:
    texts = [_prompt(arguments.prompt_words, number) for number in range(arguments.batch)]
    start = time.perf_counter()
    vectors = handle.embed(texts)
    seconds = time.perf_counter() - start
    return {"texts/s": len(texts) / seconds, "tokens/s": vectors.usage.prompt_tokens / seconds}


def _image(handle: ImageHandle, arguments: argparse.Namespace) -> dict[str, float]:
    request = ImageRequest(prompt="a red circle", steps=arguments.steps, size=arguments.size, seed=0)
    start = time.perf_counter()
    result = handle.run(request)
    seconds = time.perf_counter() - start
    peak = float(result.metrics.peak_memory_bytes or 0)
    return {"picture, s": seconds, "steps/s": arguments.steps / seconds, "peak memory, bytes": peak}


def _result(engine: InferenceEngine, handle: ModelHandle, runs: list[dict[str, float]]) -> dict[str, object]:
    peak = max(run.pop("peak memory, bytes", 0.0) for run in runs)
    figures = {}
    for name in runs[0]:
        values = [run[name] for run in runs if name in run]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[name] = {"mean": statistics.fmean(values), "deviation": deviation}
    return {
        "model": handle.id,
        "commit": handle.card.commit,
        "kind": handle.kind,
        "mlxengine": __version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": _engine.as_dict(engine.device),
        "warmed_up": True,
        "repeats": len(runs),
        "figures": figures,
        "peak_memory_bytes": int(peak) or None,
        "mock": engine.mock,
    }


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        figures = json.loads(path.read_text())["figures"]
        return {name: {"mean": float(item["mean"])} for name, item in figures.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is not a result of `mlxengine bench`.", hint="Write one with --output."
        ) from error
