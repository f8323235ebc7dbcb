"""What the verbs that run a model share: which model, and how the engine is made."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TypeVar

from attrs import evolve

from .._config import load_settings
from ..contract import kinds
from ..contract.configuration import ModelCard
from ..contract.features import parse_flags
from ..contract.kinds import Kind
from ..engine import InferenceEngine
from ..errors import InvalidParameterError, ModelNotFoundError
from ..handle import ModelHandle
from ..registry import ModelRegistry
from . import TERMINATED
from ._frame import INTERRUPTED, UsageError
from ._output import Output, plain
from ._progress import ProgressLine

H = TypeVar("H", bound=ModelHandle)


def add_model(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Options that choose the model and make the engine; ``default`` is the model where none is named.

    They are ``--model``, ``--plugin``, ``--feature``, ``--offline`` and ``--yes``.
    """
    otherwise = "else the configured or best one here" if default is None else f"default: {default}"
    parser.add_argument(
        "-m",
        "--model",
        default=default,
        help=f'org/name, a folder, a GGUF file or "auto:KIND"; {otherwise}',
    )
    parser.add_argument("--plugin", help="the plugin that must serve it")
    parser.add_argument(
        "--feature", action="append", default=[], metavar="NAME[=VALUE]", help="a feature flag; repeatable"
    )
    parser.add_argument("--offline", action="store_true", help="make no request to the hub")
    parser.add_argument("--yes", action="store_true", help="ask nothing, not even before a large download")


@contextlib.contextmanager
def engine(arguments: argparse.Namespace, out: Output) -> Iterator[InferenceEngine]:
    """The engine that the command line asks for; Ctrl-C and SIGTERM end the process at once."""
    with InferenceEngine(features=_flags(arguments), offline=True if arguments.offline else None) as made:
        try:
            yield made
        except (KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and end.code != TERMINATED:
                raise
            # A loader in the middle of an import cannot be stopped, and nothing needs an orderly end:
            # downloads resume after a kill, and the reservations of a process that is gone do not count.
            with contextlib.suppress(OSError):
                out.end_line()
                out.flush()
            os._exit(TERMINATED if isinstance(end, SystemExit) else INTERRUPTED)


def choose(engine: InferenceEngine, arguments: argparse.Namespace, out: Output) -> str:
    """The model that was named, else the configured one, else the best of those on this machine."""
    return arguments.model or load_settings().model or _best_here(engine, out)


def kind_of(engine: InferenceEngine, card: ModelCard, arguments: argparse.Namespace) -> Kind:
    """The kind that a model would be loaded as."""
    if arguments.plugin is not None:
        card = evolve(card, configuration=evolve(card.configuration, plugin=arguments.plugin))
    name = engine.explain(card).claim.kind
    return engine.kinds.get(name) or Kind(name=name)


def load_named(
    model: str,
    engine: InferenceEngine,
    arguments: argparse.Namespace,
    out: Output,
    handle: type[H],
    *,
    warm_up: bool = False,
) -> H:
    """Load a model as such a handle, its download shown; a large one is asked about first."""
    if not engine.mock:
        from ._hub_verbs import ask_before_fetching

        ask_before_fetching(model, out, offline=arguments.offline, yes=arguments.yes)
    # Set for the model as well, so that one whose plugin would ignore a flag is refused.
    flags = {name: value for name, value in _flags(arguments).items() if not name.startswith("core.")}
    with ProgressLine(out) as progress:
        return engine.load_as(
            handle,
            model,
            plugin=arguments.plugin,
            features=flags or None,
            warm_up=warm_up,
            on_progress=progress,
        )


def _flags(arguments: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in arguments.feature:
        found.update(parse_flags(text))
    return found


def prompt_words(words: list[str], default: str | None) -> list[str]:
    """The words of the command line, else what comes through a pipe, else the model's own, as one.

    Raises:
        UsageError: there is none of these.
    """
    if words and words != ["-"]:
        return words
    if words == ["-"] or not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if text:
            return [text]
    if default:
        return [default]
    raise UsageError("There is no prompt.", hint='Give one: mlxengine run "Why is the sky blue?"')


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    try:
        return kinds.positive(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def as_dict(value: object) -> dict[str, object]:
    """A value of ours as a JSON object."""
    found: dict[str, object] = plain(value)
    return found


def _best_here(engine: InferenceEngine, out: Output) -> str:
    from .. import hub

    first = next(iter(engine.kinds.values()))
    kind = first.name
    if engine.mock:
        return f"mock/{kind}"
    here = [model.id for model in hub.list_local(cache_dir=load_settings().hub.cache_dir) if model.ready]
    registry = engine.registry
    try:
        found = registry.recommend(kind, engine.device, among=here, reckon=engine.reckon)
    except InvalidParameterError:
        raise ModelNotFoundError(
            f"No model was named, and no installed plugin knows one of kind {kind!r}.",
            hint=f'Install it (pip install "{first.install}"), or name a model with --model.',
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
