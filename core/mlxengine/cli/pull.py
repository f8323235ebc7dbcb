"""Fetch a model: resumed where an earlier download stopped, verified, and ready to be loaded.

The files are those that the plugin for this model loads; --files names others. Gated repositories need a
token: set HF_TOKEN, or log in with `hf auth login`.
"""

from __future__ import annotations

import argparse
import time

from .. import hub
from .._units import human
from ._hub_verbs import add_hub, claim_on, consent, options, summary, verdict_on
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
    claim = claim_on(card, out)
    files = tuple(arguments.files or ()) or (claim.files if claim is not None else None)
    plan = hub.plan(card, files=files, **chosen.remote, offline=chosen.offline)
    fit = verdict_on(card, claim)
    if arguments.plan:
        rows = [(file.path, human(file.size), human(file.have)) for file in plan.files]

        def table() -> None:
            out.table(("file", "size", "here"), rows)
            out.line(summary(plan, fit))

        out.emit({"plan": plan, "total": plan.total, "need": plan.need, "fit": fit}, table)
        return 0
    if not consent(plan, fit, chosen, out, yes=arguments.yes):
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
