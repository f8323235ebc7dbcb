"""Search the hub for models, with their size and whether they fit on this machine.

`mlxengine models` searches the built-in registry instead, and needs no network.
"""

from __future__ import annotations

import argparse

from .. import hub
from .._units import human
from . import _kinds
from ._hub_verbs import add_hub, options, parse_bytes
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", default="", help="a part of the name")
    kinds = [kind.name for kind in _kinds.known().values() if kind.pipelines]
    parser.add_argument("--kind", choices=kinds)
    parser.add_argument("--author", help="only this user or organization")
    parser.add_argument("--max-size", metavar="SIZE", help="most bytes of weights, for example 4GB")
    parser.add_argument("--fits", action="store_true", help="leave out what does not fit on this machine")
    parser.add_argument("--sort", choices=("downloads", "likes", "updated", "trending"), default="downloads")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--any-library", action="store_true", help="also models that are not tagged mlx")
    add_hub(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    found = hub.search(
        arguments.query,
        kind=arguments.kind,
        author=arguments.author,
        library=None if arguments.any_library else "mlx",
        max_size=parse_bytes(arguments.max_size) if arguments.max_size else None,
        fits=arguments.fits,
        sort=arguments.sort,
        limit=arguments.limit,
        endpoint=options(arguments).endpoint,
    )

    def table() -> None:
        if not found:
            out.paragraph("Nothing matches. --any-library also looks at models that are not tagged mlx.")
            return
        rows = [
            (
                item.id,
                item.kind,
                human(item.weight_bytes) if item.weight_bytes is not None else None,
                item.fit.value.replace("_", " "),
                item.quantization,
                item.downloads,
                "gated" if item.gated else item.license,
            )
            for item in found
        ]
        out.table(("model", "kind", "weights", "fit", "quantization", "downloads", "license"), rows)

    out.emit({"models": found}, table)
    return 0
