"""Search the registry: the models that the plugins and the configuration file know.

Every word of the text has to occur in an entry. Sizes are compared as numbers. `mlxengine search` asks
the hub instead.
"""

from __future__ import annotations

import argparse

from .._config import load_settings
from .._host import Host
from .._selection import bits_of, human, weight_bytes
from ..configuration import ModelConfiguration
from ..registry import ModelRegistry, build_registry
from ._output import Output, plain


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", help="words to look for, or the id of one model")
    parser.add_argument("--kind", help="llm, vlm, embed, diffusion …")
    parser.add_argument("--family", help="for example smollm2")
    parser.add_argument("--quantization", help="for example 4bit")
    parser.add_argument("--license", help="SPDX identifier")
    parser.add_argument("--min-size", metavar="SIZE", help="fewest parameters, for example 1B")
    parser.add_argument("--max-size", metavar="SIZE", help="most parameters, for example 3B")
    parser.add_argument("--checked", action="store_true", help="only entries that were checked against a hub")


def run(arguments: argparse.Namespace, out: Output) -> int:
    settings = load_settings()
    host = Host(distributions=settings.distributions)
    registry = build_registry(host.models(), settings.models)
    text = " ".join(arguments.text)
    if text in registry:
        return _show(registry, text, out)
    matching = {item.id for item in registry.search(text)} if text else None
    chosen = [
        item
        for item in registry.filter(
            kind=arguments.kind,
            family=arguments.family,
            quantization=arguments.quantization,
            license=arguments.license,
            min_size=arguments.min_size,
            max_size=arguments.max_size,
            checked=True if arguments.checked else None,
        )
        if matching is None or item.id in matching
    ]

    def table() -> None:
        if not chosen:
            out.paragraph(f"None of the {len(registry)} entries matches. `mlxengine search` asks the hub.")
            return
        rows = [(item.id, item.kind, item.size, item.quantization, _memory(item)) for item in chosen]
        out.table(("model", "kind", "size", "quantization", "weights"), rows)

    out.emit({"models": [_value(registry, item) for item in chosen]}, table)
    return 0


def _show(registry: ModelRegistry, model: str, out: Output) -> int:
    entry = registry.entry(model)
    item = entry.configuration
    variants = [other.id for other in registry.variants(model)]
    value = _value(registry, item) | {"variants": variants}

    def text() -> None:
        out.line(out.bold(item.id))
        if item.summary:
            out.paragraph(item.summary, indent="  ")
        for name in ("kind", "family", "size", "quantization", "context_length", "license", "default_prompt"):
            fact = getattr(item, name)
            if fact is not None:
                mark = "" if registry.provenance(model, name) else "  (not checked)"
                out.line(f"  {name.replace('_', ' '):<15} {fact}{mark}")
        out.line(f"  {'weights':<15} {_memory(item)}")
        out.line(f"  {'from':<15} {entry.provider}")
        checked = item.provenance
        out.line(f"  {'checked':<15} {f'{checked.checked}, {checked.source}' if checked else 'never'}")
        others = [name for name in variants if name != item.id]
        if others:
            out.paragraph(f"variants: {', '.join(others)}", indent="  ")

    out.emit(value, text)
    return 0


def _value(registry: ModelRegistry, item: ModelConfiguration) -> dict[str, object]:
    found: dict[str, object] = plain(item)
    return found | {
        "parameters": item.parameters,
        "bits": bits_of(item),
        "weight_bytes": weight_bytes(item),
        "provider": registry.entry(item.id).provider,
    }


def _memory(item: ModelConfiguration) -> str:
    size = weight_bytes(item)
    return "–" if size is None else human(size)
