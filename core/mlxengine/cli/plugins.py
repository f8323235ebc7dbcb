"""List the plugins that were found, and those that were set aside with the reason and the remedy."""

from __future__ import annotations

import argparse

from .._host import Host
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="only this plugin")


def run(arguments: argparse.Namespace, out: Output) -> int:
    from .._config import load_settings
    from ..errors import NoPluginForModelError

    host = Host(distributions=load_settings().distributions)
    records = [record for record in host.records if arguments.name in (None, record.name)]
    if arguments.name and not records:
        known = ", ".join(record.name for record in host.records) or "none"
        raise NoPluginForModelError(f"There is no plugin {arguments.name!r}.", hint=f"Installed: {known}.")
    provided = {record.name: 0 for record in records}
    for feature in host.features:
        provider = host.features.provider(feature.name)
        if provider in provided:
            provided[provider] += 1
    value = [
        {
            "name": record.name,
            "distribution": record.distribution,
            "version": record.version,
            "state": "set aside" if record.error else "active",
            "hooks": sorted(record.hooks),
            "features": provided[record.name],
            "error": record.error.message if record.error else None,
            "hint": record.error.hint if record.error else None,
        }
        for record in records
    ]

    def text() -> None:
        if not records:
            out.paragraph('No plugin is installed. Install a kind: pip install "mlxengine[llm]".')
            return
        rows = [(item["name"], item["distribution"], item["version"], item["state"]) for item in value]
        out.table(("plugin", "distribution", "version", "state"), rows)
        for record in records:
            if record.error:
                out.line()
                out.paragraph(record.error.message)
                out.paragraph(record.error.hint or "", indent="  ")

    out.emit({"plugins": value}, text)
    return 0
