"""Recommend the model of a kind that suits this machine best, and say why.

Only models that the registry knows are considered; `mlxengine search --fits` asks the hub.
"""

from __future__ import annotations

import argparse

from .._registry.selection import Prefer
from .._units import human, parse_bytes
from ..errors import InvalidParameterError
from . import _engine, _kinds
from ._output import Output, plain


def configure(parser: argparse.ArgumentParser) -> None:
    first, *others = _kinds.known()
    parser.add_argument("kind", nargs="?", default=first, help=f"{first} (the default), {', '.join(others)}")
    parser.add_argument("--task", help="chat, code, reasoning, tools, multilingual, rerank, turbo …")
    parser.add_argument("--prefer", choices=tuple(Prefer), default=Prefer.QUALITY)
    parser.add_argument("--memory-budget", metavar="SIZE", help="instead of this device's, for example 8GB")
    parser.add_argument("--checked", action="store_true", help="only entries that a source names")
    parser.set_defaults(feature=[], offline=True)


def run(arguments: argparse.Namespace, out: Output) -> int:
    budget = parse_bytes(arguments.memory_budget)
    if budget is not None and budget <= 0:
        raise InvalidParameterError("The memory budget must be positive.")
    with _engine.engine(arguments, out) as engine:
        found = engine.registry.recommend(
            arguments.kind,
            engine.device,
            arguments.task,
            prefer=arguments.prefer,
            budget=budget,
            checked_only=arguments.checked,
            reckon=engine.reckon,
        )

    def text() -> None:
        out.line(out.bold(found.model.id))
        out.paragraph(found.reason, indent="  ")
        for item in found.alternatives[:3]:
            facts = ", ".join(fact for fact in (item.size, item.quantization) if fact)
            out.line(f"  or {item.id} ({facts})")
        out.paragraph(f"Needs about {human(found.needed_bytes)}. Fetch it: mlxengine pull {found.model.id}")

    out.emit(plain(found), text)
    return 0
