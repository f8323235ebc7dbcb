"""Search the registry: the models that the plugins and the configuration file know.

Every word of the text has to occur in an entry. Sizes are compared as numbers. `mlxengine search` asks
the hub instead.
"""

from __future__ import annotations

import argparse

from attrs import fields_dict

from .._config import load_settings
from .._engine.host import Host
from .._registry.selection import bits_of, weight_bytes
from .._units import human
from ..contract.configuration import ModelConfiguration, Provenance
from ..errors import InvalidParameterError
from ..registry import ModelRegistry, build_registry
from . import _kinds
from ._output import Output, plain

_LABELS = {"memory_bytes": "weights", "base_model": "converted from", "template_notes": "chat template"}
_OURS = ("kind", "family", "default_prompt", "features")
_APART = ("id", "summary", "provenance", "sources")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", help="words to look for, or the id of one model")
    parser.add_argument("--kind", help=", ".join(_kinds.known()))
    parser.add_argument("--family", help="for example smollm2")
    parser.add_argument("--quantization", help="for example 4bit")
    parser.add_argument("--license", help="SPDX identifier")
    parser.add_argument("--min-size", metavar="SIZE", help="fewest parameters, for example 1B")
    parser.add_argument("--max-size", metavar="SIZE", help="most parameters, for example 3B")
    parser.add_argument("--min-context", metavar="TOKENS", help="longest context at least, for example 32K")
    parser.add_argument("--checked", action="store_true", help="only entries that a source names")


def run(arguments: argparse.Namespace, out: Output) -> int:
    settings = load_settings()
    host = Host.installed(settings)
    registry = build_registry(host.models(), settings.models, host.kinds)
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
            min_context=_tokens(arguments.min_context),
            checked=True if arguments.checked else None,
        )
        if matching is None or item.id in matching
    ]

    def table() -> None:
        if not chosen:
            out.paragraph(f"None of the {len(registry)} entries matches. `mlxengine search` asks the hub.")
            return
        headers = ["model", "kind", "size", "quantization", "weights"]
        rows = [[item.id, item.kind, item.size, item.quantization, _memory(item)] for item in chosen]
        # Names come first: a narrow terminal has no room for the rest.
        if not out.interactive or out.width >= 110:
            headers += ["context", "license"]
            rows = [
                [*row, str(item.context_length or "–"), item.license]
                for row, item in zip(rows, chosen, strict=True)
            ]
        out.table(headers, rows)

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
        notes: list[Provenance] = []
        for name in fields_dict(type(item)):
            fact = getattr(item, name)
            if name in _APART or fact is None or fact == () or fact is False:
                continue
            source = registry.provenance(model, name)
            if source is not None and source not in notes:
                notes.append(source)
            mark = f"[{notes.index(source) + 1}]" if source else "" if name in _OURS else "(not checked)"
            shown = human(fact) if name == "memory_bytes" else _words(fact)
            label = _LABELS.get(name, name.replace("_", " "))
            out.paragraph(f"{label:<15} {shown}  {mark}", indent="  ", hang=" " * 18)
        if item.memory_bytes is None and weight_bytes(item) is not None:
            out.line(f"  {'weights':<15} about {_memory(item)}")
        out.line(f"  {'from':<15} {entry.provider}")
        checked = item.provenance
        out.line(f"  {'checked':<15} {f'{checked.checked}, {checked.source}' if checked else 'never'}")
        others = [name for name in variants if name != item.id]
        if others:
            out.paragraph(f"variants: {', '.join(others)}", indent="  ")
        for number, note in enumerate(notes, 1):
            out.paragraph(
                f"[{number}] {note.source} ({note.how}, {note.checked})", indent="  ", hang="      "
            )

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


def _tokens(text: str | None) -> int | None:
    """A number of tokens: ``"32768"``, or ``"32K"`` in units of 1024."""
    if text is None:
        return None
    number = text.strip().upper().removesuffix("K")
    if not number.isdigit():
        raise InvalidParameterError(f"{text!r} is not a number of tokens.", hint="Write it as 32768 or 32K.")
    return int(number) * (1024 if text.strip().upper().endswith("K") else 1)


def _words(fact: object) -> str:
    if isinstance(fact, tuple):
        return ", ".join(": ".join(item) if isinstance(item, tuple) else str(item) for item in fact)
    return str(fact)


def _memory(item: ModelConfiguration) -> str:
    size = weight_bytes(item)
    return "–" if size is None else human(size)
