"""Remove a model from this machine: all of it, or with org/name@revision that revision alone."""

from __future__ import annotations

import argparse

from .. import hub
from .._units import human
from ._hub_verbs import add_cache, confirm, options
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="+", help="org/name or org/name@revision")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_cache(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    local = options(arguments).local
    found = [hub.remove(name, dry_run=True, **local) for name in arguments.model]
    freed = sum(removal.freed for removal in found)
    if not arguments.dry_run:
        names = ", ".join(arguments.model)
        if not confirm(f"Remove {names} and free {human(freed)}?", out, yes=arguments.yes):
            return 0
        found = [hub.remove(name, **local) for name in arguments.model]

    def text() -> None:
        word = "would free" if arguments.dry_run else "freed"
        for removal in found:
            out.line(f"{removal.model}: {word} {human(removal.freed)} ({removal.files} files)")

    out.emit({"removed": not arguments.dry_run, "freed": freed, "models": found}, text)
    return 0
