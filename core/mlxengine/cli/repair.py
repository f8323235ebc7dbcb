"""Hash every file of a model, and fetch again those that are damaged or missing, and only those."""

from __future__ import annotations

import argparse

from .. import hub
from ._hub_verbs import add_hub, options
from ._output import Output
from ._progress import ProgressLine


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="org/name or org/name@revision")
    add_hub(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    with ProgressLine(out) as progress:
        repaired = hub.repair(arguments.model, **options(arguments).remote, report=progress)

    def text() -> None:
        for path in repaired:
            out.line(f"repaired {path}")
        out.line(f"{arguments.model} is in order" + ("." if repaired else "; nothing was damaged."))

    out.emit({"model": arguments.model, "repaired": repaired}, text)
    return 0
