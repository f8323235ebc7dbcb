"""Say whether a model fits this machine, before it is fetched, or how good such answers were."""

from __future__ import annotations

import argparse
from datetime import datetime

from .._memory import history
from .._units import human
from ..contract.kinds import Kind
from ..engine import InferenceEngine
from ..errors import InvalidParameterError
from . import _kinds
from ._hub_verbs import add_hub, options
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="org/name, org/name@revision, a folder or a GGUF file")
    parser.add_argument("--history", action="store_true", help="what loads were predicted to take and took")
    add_hub(parser)
    _kinds.add_options(parser, "workload")


def run(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.history:
        return _history_of(arguments.model, out)
    if arguments.model is None:
        raise InvalidParameterError("No model was given.", hint="`mlxengine fit org/name`.")
    chosen = options(arguments)
    with InferenceEngine(**chosen.remote, offline=chosen.offline) as engine:
        card = engine.resolve(arguments.model)
        name = engine.explain(card).claim.kind
        workload = (engine.kinds.get(name) or Kind(name=name)).find("workload")
        report = engine.fit(card, workload(**_kinds.values(arguments, workload.options(), name)))
    value = {"fit": report, "margin": report.margin, "explanation": report.explanation}

    def text() -> None:
        for line in report.explanation:
            out.paragraph(line)

    out.emit(value, text)
    return 0


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
