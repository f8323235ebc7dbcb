"""Check this installation and say how to repair it.

Nothing is changed and no model is loaded. --self-test runs a real inference for each installed kind;
--network asks whether the hub answers. The exit code is 0 if nothing failed, else 1.
"""

from __future__ import annotations

import argparse

from ..contract.checks import CheckStatus
from ..diagnosis import diagnose
from ._output import Output

_MARKS = {CheckStatus.OK: "ok", CheckStatus.WARNING: "warning", CheckStatus.FAILED: "failed"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--self-test", action="store_true", help="run each kind's own test: a real inference")
    parser.add_argument("--network", action="store_true", help="ask whether the hub answers")


def run(arguments: argparse.Namespace, out: Output) -> int:
    found = diagnose(self_test=arguments.self_test, network=arguments.network)

    def text() -> None:
        width = max(len(mark) for mark in _MARKS.values())
        for check in found.checks:
            mark = _MARKS[check.status]
            what = f"{check.name}: {check.detail}" if check.detail else check.name
            out.paragraph(f"{mark:<{width}}  {what}", hang=" " * (width + 2))
            if check.remedy and check.status is not CheckStatus.OK:
                out.paragraph(f"→ {check.remedy}", indent=" " * (width + 2))
        installed = [f"{name} {version}" for name, version in found.versions if version]
        out.line()
        out.paragraph(", ".join(installed))

    out.emit({"ok": found.ok, **_value(found)}, text)
    return 0 if found.ok else 1


def _value(found: object) -> dict[str, object]:
    from ._output import plain

    value: dict[str, object] = plain(found)
    versions = value["versions"]
    assert isinstance(versions, list)
    return {**value, "versions": dict(versions)}
