"""What the verbs that run a model share: which model, how the engine is made, and the request's options."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .._config import load_settings
from ..contract.features import parse_flags
from ..engine import InferenceEngine
from ..errors import InvalidParameterError, ModelNotFoundError
from ..handle import ModelHandle
from ..registry import ModelRegistry
from ..text.params import GenerateParams, params_from
from ._frame import INTERRUPTED, UsageError
from ._hub_verbs import ask_before_fetching
from ._output import Output, plain
from ._progress import ProgressLine

_PARAMETERS = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that choose the model and make the engine."""
    parser.add_argument(
        "-m",
        "--model",
        help='org/name, a folder, a GGUF file or "auto:llm"; else the configured or best one here',
    )
    parser.add_argument("--plugin", help="the plugin that must serve it")
    parser.add_argument(
        "--feature", action="append", default=[], metavar="NAME[=VALUE]", help="a feature flag; repeatable"
    )
    parser.add_argument("--offline", action="store_true", help="make no request to the hub")
    parser.add_argument("--yes", action="store_true", help="ask nothing, not even before a large download")


def add_params(parser: argparse.ArgumentParser) -> None:
    """Options of a text request."""
    group = parser.add_argument_group("text")
    for name, kind in _PARAMETERS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help="the model's own if left out")
    group.add_argument("--seed", type=int, help="makes the answer repeatable")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="a text that ends the answer; repeatable"
    )
    group.add_argument("--system", metavar="TEXT", help="instructions before the conversation")


def params(arguments: argparse.Namespace) -> GenerateParams:
    """The request's parameters by the command line."""
    values: dict[str, Any] = {name: getattr(arguments, name) for name in (*_PARAMETERS, "seed")}
    return params_from({**values, "stop": tuple(arguments.stop or ())})


@contextlib.contextmanager
def engine(arguments: argparse.Namespace, out: Output) -> Iterator[InferenceEngine]:
    """The engine that the command line asks for; Ctrl-C ends the process without waiting for it."""
    flags: dict[str, object] = {}
    for text in arguments.feature:
        flags.update(parse_flags(text))
    with InferenceEngine(features=flags, offline=True if arguments.offline else None) as made:
        try:
            yield made
        except KeyboardInterrupt:
            # A loader in the middle of an import cannot be stopped, and nothing needs an orderly end:
            # downloads resume after a kill, and the reservations of a process that is gone do not count.
            with contextlib.suppress(OSError):
                out.end_line()
                out.flush()
            os._exit(INTERRUPTED)


def load(
    engine: InferenceEngine, arguments: argparse.Namespace, out: Output, *, warm_up: bool = False
) -> ModelHandle:
    """Load the model that was named, else the configured one, else the best of those on this machine."""
    model = arguments.model or load_settings().model or _best_here(engine, "llm", out)
    return load_named(model, engine, arguments, out, warm_up=warm_up)


def load_named(
    model: str,
    engine: InferenceEngine,
    arguments: argparse.Namespace,
    out: Output,
    *,
    warm_up: bool = False,
) -> ModelHandle:
    """Load a model, its download shown; a large one is asked about first."""
    if not engine.mock:
        ask_before_fetching(model, out, offline=arguments.offline, yes=arguments.yes)
    with ProgressLine(out) as progress:
        return engine.load(model, plugin=arguments.plugin, warm_up=warm_up, on_progress=progress)


def prompt_words(words: list[str], default: str | None) -> str:
    """The prompt: the words of the command line, else what comes through a pipe, else the model's own.

    Raises:
        UsageError: there is none of these.
    """
    if words and words != ["-"]:
        return " ".join(words)
    if words == ["-"] or not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if text:
            return text
    if default:
        return default
    raise UsageError("There is no prompt.", hint='Give one: mlxengine run "Why is the sky blue?"')


def size(text: str) -> tuple[int, int]:
    """``"512x512"`` as (width, height)."""
    width, cross, height = text.lower().partition("x")
    if not cross or not width.isdigit() or not height.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write it as 512x512")
    return int(width), int(height)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def as_dict(value: object) -> dict[str, object]:
    """A value of ours as a JSON object."""
    found: dict[str, object] = plain(value)
    return found


def _best_here(engine: InferenceEngine, kind: str, out: Output) -> str:
    from .. import hub

    if engine.mock:
        return "mock/llm"
    here = [model.id for model in hub.list_local(cache_dir=load_settings().hub.cache_dir) if model.ready]
    registry = engine.registry
    try:
        found = registry.recommend(kind, engine.device, among=here)
    except InvalidParameterError:
        raise ModelNotFoundError(
            f"No model was named, and no installed plugin knows one of kind {kind!r}.",
            hint='Install a kind (pip install "mlxengine[llm]"), or name a model with --model.',
        ) from None
    except ModelNotFoundError as error:
        raise _nothing_here(registry, engine, kind, error) from None
    out.note(f"using {found.model.id}: {found.reason}")
    return found.model.id


def _nothing_here(
    registry: ModelRegistry, engine: InferenceEngine, kind: str, error: ModelNotFoundError
) -> ModelNotFoundError:
    try:
        best = registry.recommend(kind, engine.device)
    except ModelNotFoundError:
        return error
    return ModelNotFoundError(
        "No model was named, and none that the registry knows is on this machine.",
        hint=f"Fetch one: mlxengine pull {best.model.id}. {best.reason}",
    )


def stats(usage: Any, metrics: Any) -> str:
    """Tokens and rates of an answer, in one line."""
    parts = [f"{usage.prompt_tokens} prompt tokens"]
    if usage.cached_tokens:
        parts[0] += f" ({usage.cached_tokens} cached)"
    parts.append(f"{usage.completion_tokens} generated")
    if metrics.first_event_seconds is not None:
        parts.append(f"first after {metrics.first_event_seconds:.2f} s")
    if metrics.generation_per_second:
        parts.append(f"{metrics.generation_per_second:.1f} tokens/s")
    return ", ".join(parts)


def recipe(values: Mapping[str, Any]) -> str:
    """A picture's recipe in one line."""
    return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)
