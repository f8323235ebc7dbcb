"""List the plugins, and why some are set aside; ``new NAME`` writes one, ``check NAME`` tries one."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._engine.host import Host
from ._output import Output

if TYPE_CHECKING:
    from ..testing import Specimen


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", metavar="new|check|NAME", help="write, try, or show only one")
    parser.add_argument("name", nargs="?", help="the plugin to write or to try")
    parser.add_argument("--into", default=".", metavar="FOLDER", help="where `new` writes")
    parser.add_argument(
        "--specimen", metavar="MODULE:OBJECT", help="a mlxengine.testing.Specimen to try the plugin on"
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.action in ("new", "check"):
        from ..errors import InvalidParameterError

        if not arguments.name:
            raise InvalidParameterError(f"`mlxengine plugins {arguments.action}` needs the plugin's name.")
        return (_new if arguments.action == "new" else _check)(arguments, out)
    return _list(arguments.action, out)


def _new(arguments: argparse.Namespace, out: Output) -> int:
    from ._template import write

    files = [str(path) for path in write(arguments.name, Path(arguments.into))]

    def text() -> None:
        for path in files:
            out.line(path)
        out.paragraph('Next: pip install -e ".[test]" in its folder, then python -m pytest.')

    out.emit({"plugin": arguments.name, "files": files}, text)
    return 0


def _check(arguments: argparse.Namespace, out: Output) -> int:
    from ..testing import check_plugin

    outcomes = list(check_plugin(arguments.name, _specimen(arguments.specimen)))
    words = {None: "not checked", True: "kept", False: "NOT KEPT"}
    states = [words[item.failure is None if item.checked else None] for item in outcomes]
    value = [
        {"clause": item.clause.id, "state": state.lower(), "failure": item.failure}
        for item, state in zip(outcomes, states, strict=True)
    ]

    def text() -> None:
        out.table(
            ("clause", "state"),
            [(item.clause.id, state) for item, state in zip(outcomes, states, strict=True)],
        )
        for item in outcomes:
            if item.failure:
                out.line()
                out.paragraph(item.failure)
        if any(not item.checked for item in outcomes):
            out.line()
            out.paragraph("What was not checked needs a model: name one with --specimen module:object.")

    out.emit({"plugin": arguments.name, "clauses": value}, text)
    return 1 if any(item.failure for item in outcomes) else 0


def _specimen(named: str | None) -> Specimen | None:
    from ..errors import InvalidParameterError
    from ..testing import Specimen

    if named is None:
        return None
    module, _, attribute = named.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the console script leaves the working folder out
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidParameterError(
            f"--specimen {named} cannot be imported: {error}.", hint="Write it as module:object."
        ) from error
    if not isinstance(found, Specimen):
        raise InvalidParameterError(f"--specimen {named} is a {type(found).__name__}, not a Specimen.")
    return found


def _list(name: str | None, out: Output) -> int:
    from .._config import load_settings
    from ..errors import NoPluginForModelError

    host = Host.installed(load_settings())
    records = [record for record in host.records if name in (None, record.name)]
    if name and not records:
        known = ", ".join(record.name for record in host.records) or "none"
        raise NoPluginForModelError(f"There is no plugin {name!r}.", hint=f"Installed: {known}.")
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
            "state": "set aside" if record.error else "off" if record.off else "active",
            "hooks": sorted(record.hooks),
            "kinds": [kind.name for kind in record.kinds],
            "features": provided[record.name],
            "error": record.error.message if record.error else None,
            "hint": record.error.hint if record.error else None,
        }
        for record in records
    ]

    def text() -> None:
        if not records:
            first = next(iter(host.kinds.values()))
            out.paragraph(f'No plugin is installed. Install a kind: pip install "{first.install}".')
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
