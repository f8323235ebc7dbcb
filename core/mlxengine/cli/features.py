"""List the feature flags with their values and who set them, or say everything about one."""

from __future__ import annotations

import argparse

from .._config import feature_layers, load_settings
from .._engine.host import Host
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a feature, for example core.degrade")
    parser.add_argument("--plugin", help="only this plugin's")


def run(arguments: argparse.Namespace, out: Output) -> int:
    settings = load_settings()
    host = Host.installed(settings, feature_layers(settings))
    registry = host.features
    if arguments.name:
        found = registry.explain(arguments.name)

        def one() -> None:
            out.line(out.bold(found.name))
            out.paragraph(found.summary, indent="  ")
            out.line(f"  value      {found.value!r} ({found.source})")
            out.line(f"  provider   {found.provider}")
            out.line(f"  stage      {found.stage}")
            out.line(f"  available  {'yes' if found.available else 'no'}")
            out.paragraph(f"reason     {found.reason}", indent="  ")

        out.emit(found, one)
        return 0
    every = [registry.explain(feature) for feature in registry]
    chosen = [item for item in every if arguments.plugin in (None, item.provider)]

    def text() -> None:
        if not chosen:
            out.line("No installed plugin provides a feature.")
            return
        rows = [
            (
                item.name,
                "not available" if not item.available else _short(item.value),
                item.source,
                item.stage,
                item.summary,
            )
            for item in chosen
        ]
        out.table(("feature", "value", "from", "stage", "what it does"), rows)

    out.emit({"features": chosen}, text)
    return 0


def _short(value: object) -> str:
    if value is None:
        return "–"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
