"""List the models on this machine, with their size and whether they are ready to be loaded."""

from __future__ import annotations

import argparse

from .. import hub
from .._units import human
from ._hub_verbs import add_cache, options
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    add_cache(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    models = hub.list_local(**options(arguments).local)

    def table() -> None:
        if not models:
            out.line("No models here. `mlxengine pull org/name` fetches one.")
            return
        rows: list[tuple[object, ...]] = []
        for model in models:
            if not model.revisions:
                rows.append((model.id, None, human(model.size), "incomplete"))
            for revision in reversed(model.revisions):
                name = ", ".join(revision.refs) or revision.commit[:12]
                rows.append((model.id, name, human(revision.size), _state(model, revision)))
        out.table(("model", "revision", "size", "state"), rows)

    out.emit({"models": models}, table)
    return 0


def _state(model: hub.LocalModel, revision: hub.LocalRevision) -> str:
    if revision.ready:
        return "ready"
    if model.partial:
        return f"incomplete, {human(model.partial)} on the way"
    return "not verified" if revision.size else "not fetched"
