"""Say how much disk space the models on this machine take."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from .. import hub
from .._units import human
from ._hub_verbs import add_cache, options
from ._output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    add_cache(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    chosen = options(arguments)
    models = sorted(hub.list_local(**chosen.local), key=lambda model: -model.size)
    folder = hub.cache_folder(**chosen.local)
    total = sum(model.size for model in models)
    free = _free(folder)

    def table() -> None:
        rows = [(model.id, human(model.size), human(model.partial)) for model in models]
        out.table(("model", "size", "of it incomplete"), rows)
        out.paragraph(f"{human(total)} in {folder}, {human(free)} free")

    sizes = [{"id": model.id, "size": model.size, "partial": model.partial} for model in models]
    out.emit({"cache_dir": folder, "total": total, "free": free, "models": sizes}, table)
    return 0


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
