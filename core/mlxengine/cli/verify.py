"""Check that models on this machine are as they were when they were fetched.

Sizes and times of change are compared, which takes milliseconds; --deep reads and hashes every file, and
finds rot that keeps both. Needs no network. The exit code is 4 if anything is wrong; `mlxengine repair`
puts it right.
"""

from __future__ import annotations

import argparse

from .. import hub
from .._units import human
from ..errors import InvalidParameterError
from ._hub_verbs import add_cache, options
from ._output import Output

WRONG = 4


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="*", help="org/name, org/name@revision or a path; all by default")
    parser.add_argument("--deep", action="store_true", help="read and hash the files")
    parser.add_argument("--sample", metavar="PERCENT", type=float, default=100, help="hash a part of them")
    add_cache(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    local = options(arguments).local
    if not 0 < arguments.sample <= 100:
        raise InvalidParameterError("--sample takes a percentage above 0 and at most 100.")
    names = arguments.model or [model.id for model in hub.list_local(**local) if _was_fetched(model)]
    reports = []
    for name in names:
        if arguments.deep:
            out.note(f"hashing {name} …")
        reports.append(hub.verify(name, deep=arguments.deep, sample=arguments.sample / 100, **local))

    def table() -> None:
        for report in reports:
            total = sum(file.size for file in report.files)
            state = "ok" if report.ok else "WRONG"
            out.line(f"{state:<5}  {report.model}  {len(report.files)} files, {human(total)}")
            if report.problem:
                out.paragraph(report.problem, indent="       ")
            for file in report.bad:
                out.line(f"       {file.state.value:<10} {file.path}")

    out.emit({"ok": all(report.ok for report in reports), "models": [_value(r) for r in reports]}, table)
    return 0 if all(report.ok for report in reports) else WRONG


def _was_fetched(model: hub.LocalModel) -> bool:
    """Not merely looked at (``--plan``, ``fit``), nor still on the way."""
    return any(revision.size for revision in model.revisions)


def _value(report: hub.VerifyReport) -> dict[str, object]:
    return {
        "model": report.model,
        "commit": report.commit,
        "ok": report.ok,
        "problem": report.problem or None,
        "files": report.files,
    }
