"""First steps: what this machine is, what is missing, three models that fit, and a first answer.

Each step can be skipped, and --yes takes the recommended choice everywhere, for scripts.
"""

from __future__ import annotations

import argparse
import sys

from .._registry.selection import needed_bytes
from .._units import human
from ..contract.checks import CheckStatus
from ..contract.configuration import ModelConfiguration
from ..contract.kinds import Asking
from ..diagnosis import Diagnosis, diagnose
from ..engine import InferenceEngine
from ..errors import ConfigurationError, MLXEngineError
from ..handle import ModelHandle
from . import _engine, _kinds
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    _engine.add_model(parser)
    first, *others = _kinds.known()
    parser.add_argument(
        "--kind",
        default=first,
        help=f"the kind of model to begin with: {first} (the default), {', '.join(others)}",
    )
    parser.add_argument("--no-pull", action="store_true", help="fetch nothing; the answer is skipped too")
    parser.add_argument("--no-answer", action="store_true", help="skip the first answer")


def run(arguments: argparse.Namespace, out: Output) -> int:
    found = diagnose()
    if not out.json:
        _say_machine(found, out)
    broken = [check for check in found.checks if check.status is CheckStatus.FAILED]
    value: dict[str, object] = {"device": found.device, "checks": found.checks, "model": None, "answer": None}
    if any(check.name in ("mlx", "plugins") for check in broken) and "core.mock" not in arguments.feature:
        out.emit(value, lambda: out.paragraph("Install what is missing, then run `mlxengine setup` again."))
        return 1
    with _engine.engine(arguments, out) as engine:
        model = arguments.model or _choose(engine, arguments, out, value)
        value["model"] = model
        if model is not None and not arguments.no_pull:
            handle = _engine.load_named(model, engine, arguments, out, ModelHandle)
            kind = engine.kinds.get(handle.kind)
            if kind is not None and kind.run is not None and not arguments.no_answer:
                value["answer"] = _answer(handle, kind.find("run"), out)
    if out.json:
        out.value(value)
    elif model is not None:
        out.paragraph(f'Go on with: mlxengine chat --model "{model}"')
    return 0


def _say_machine(found: Diagnosis, out: Output) -> None:
    out.line(out.bold("This machine"))
    for check in found.checks:
        if check.name in ("machine", "mlx", "BLAS") or check.status is not CheckStatus.OK:
            out.paragraph(f"{check.name}: {check.detail}", indent="  ", hang="    ")
        if check.remedy and check.status is not CheckStatus.OK:
            out.paragraph(f"→ {check.remedy}", indent="    ")


def _choose(
    engine: InferenceEngine, arguments: argparse.Namespace, out: Output, value: dict[str, object]
) -> str | None:
    """The model to begin with, of three that fit; ``None`` if the person skips."""
    try:
        best = engine.registry.recommend(arguments.kind, engine.device, reckon=engine.reckon)
    except MLXEngineError as error:
        raise ConfigurationError(
            f"No model can be recommended: {error.message}", hint="Name one with --model."
        ) from error
    offers: list[ModelConfiguration] = [best.model, *best.alternatives][:3]
    value["offers"] = [item.id for item in offers]
    if not out.json:
        out.line(out.bold("Models that fit"))
        for number, item in enumerate(offers, 1):
            need = needed_bytes(item, engine.device)
            size = f"{item.size}, " if item.size else ""
            out.paragraph(f"{number}. {item.id} ({size}needs {human(need or 0)})", indent="  ")
        out.paragraph(best.reason, indent="  ")
    if arguments.yes:
        return best.model.id
    if out.json or not sys.stdin.isatty():
        raise ConfigurationError("Nobody is there to choose a model.", hint="Add --yes, or --model.")
    while True:
        sys.stderr.write(f"Which one? [1-{len(offers)}, s to skip; 1] ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        word = line.strip().lower() or "1"
        if not line or word in ("s", "skip"):
            return None
        if word.isdigit() and 1 <= int(word) <= len(offers):
            return offers[int(word) - 1].id


def _answer(handle: ModelHandle, asking: Asking, out: Output) -> str | None:
    """What the model says to a first question, if its kind has one."""
    if asking.first is None:
        return None
    prompt = handle.configuration.default_prompt or asking.first
    text = ""
    if not out.json:
        out.line(out.bold("A first answer"))
        out.paragraph(f"> {prompt}", indent="  ")
    request = asking.request([prompt], {option.name: option.default for option in asking.options})
    with ModelHandle.stream(handle, request) as stream:
        for event in stream:
            shown = asking.show(event)
            text += shown
            if not out.json:
                out.write(shown)
    out.end_line()
    return text
