"""Say whether a model fits this machine, before it is fetched, or how good such answers were."""

from __future__ import annotations

import argparse
from datetime import datetime

from .._memory import history
from .._units import human
from ..engine import InferenceEngine
from ..errors import InvalidParameterError
from ._hub_verbs import add_hub, options
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="org/name, org/name@revision, a folder or a GGUF file")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="prompt and answer together")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="requests at once")
    parser.add_argument("--size", metavar="WxH", help="of a picture, in pixels")
    parser.add_argument("--kv-bits", type=int, metavar="BITS", help="bits of the key-value cache")
    parser.add_argument("--history", action="store_true", help="what loads were predicted to take and took")
    add_hub(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.history:
        return _history_of(arguments.model, out)
    if arguments.model is None:
        raise InvalidParameterError("No model was given.", hint="`mlxengine fit org/name`.")
    if arguments.batch < 1 or (arguments.context is not None and arguments.context < 1):
        raise InvalidParameterError("--batch and --context must be at least 1.")
    chosen = options(arguments)
    with InferenceEngine(**chosen.remote, offline=chosen.offline) as engine:
        report = engine.fit(
            arguments.model,
            context_length=arguments.context,
            batch=arguments.batch,
            size=_size(arguments.size),
            kv_bits=arguments.kv_bits,
        )
    value = {"fit": report, "margin": report.margin, "explanation": report.explanation}

    def text() -> None:
        for line in report.explanation:
            out.paragraph(line)

    out.emit(value, text)
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InvalidParameterError(f"--size {text!r} is not a size.", hint="Write it as 512x512.")
    return int(width), int(height)


def _history_of(model: str | None, out: Output) -> int:
    found = [item for item in history.read() if model in (None, item.model)]

    def table() -> None:
        if not found:
            out.line("No load is on record.")
            return
        rows = [
            (
                datetime.fromtimestamp(item.when).strftime("%Y-%m-%d %H:%M"),
                item.model,
                item.backend,
                human(item.predicted),
                human(item.weights),
                f"{item.error:+.0%}",
                human(item.peak),
                "" if item.cache is None else f"{human(item.cache)} of {human(item.predicted_cache)}",
            )
            for item in found
        ]
        names = ("when", "model", "on", "predicted", "weights", "error", "peak", "cache, of predicted")
        out.table(names, rows)

    out.emit({"loads": found}, table)
    return 0
