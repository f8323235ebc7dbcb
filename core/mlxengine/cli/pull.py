"""Fetch a model: resumed where an earlier download stopped, verified, and ready to be loaded.

The files are those that the plugin for this model loads; --files names others. Gated repositories need a
token: set HF_TOKEN, or log in with `hf auth login`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from .. import hub
from .._config import load_settings
from .._host import Host
from .._selection import human
from ..configuration import ModelCard
from ..errors import NoPluginForModelError
from ._hub_verbs import add_hub, confirm, options
from ._output import Output
from ._progress import ProgressLine


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="org/name or org/name@revision")
    parser.add_argument("--files", action="append", metavar="PATTERN", help="fetch these files; repeatable")
    parser.add_argument("--plan", action="store_true", help="only say what would be fetched")
    parser.add_argument("--yes", action="store_true", help="do not ask before a large download")
    parser.add_argument("--ask-above", metavar="SIZE", help="what a large download is; 10GB by default")
    add_hub(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    chosen = options(arguments)
    card = hub.resolve(arguments.model, **chosen.remote, offline=chosen.offline, update=True)
    files = tuple(arguments.files or ()) or _files_of(card, out)
    plan = hub.plan(card, files=files, **chosen.remote, offline=chosen.offline)
    fit = hub.fit(card)
    if arguments.plan:
        rows = [(file.path, human(file.size), human(file.have)) for file in plan.files]

        def table() -> None:
            out.table(("file", "size", "here"), rows)
            out.line(_summary(plan, fit))

        out.emit({"plan": plan, "total": plan.total, "need": plan.need, "fit": fit}, table)
        return 0
    if not out.json:
        out.note(_summary(plan, fit))
    if plan.need > chosen.ask_above and not confirm(
        f"Fetch {human(plan.need)} for {plan.repo}?", out, yes=arguments.yes
    ):
        return 0
    start = time.monotonic()
    with ProgressLine(out) as progress:
        path = hub.fetch(card, files=files, **chosen.remote, offline=chosen.offline, report=progress)
    value = {
        "model": card.id,
        "commit": card.commit,
        "path": path,
        "bytes": plan.total,
        "fetched": plan.need,
        "seconds": round(time.monotonic() - start, 3),
    }
    out.emit(value, lambda: out.line(str(path)))
    return 0


def _files_of(card: ModelCard, out: Output) -> Sequence[str] | None:
    """What the plugin that serves the model loads; ``None`` (the usual files) if there is no such plugin."""
    host = Host(distributions=load_settings().distributions)
    try:
        claim = host.owner(card).claim
    except NoPluginForModelError as error:
        out.note(f"note: {error.message} Its usual files are fetched.")
        return None
    if claim.problem is not None:
        raise claim.problem
    return claim.files


def _summary(plan: hub.DownloadPlan, fit: hub.FitVerdict) -> str:
    what = f"{plan.repo}: {len(plan.files)} files, {human(plan.total)}"
    need = f", {human(plan.need)} to fetch" if plan.need != plan.total else ""
    memory = {
        hub.FitVerdict.FITS: "fits in memory",
        hub.FitVerdict.TIGHT: "fits tightly in memory",
        hub.FitVerdict.WONT_FIT: "does not fit in memory",
    }.get(fit)
    return f"{what}{need}{f'; {memory}' if memory else ''}"
