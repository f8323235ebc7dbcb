"""Write docs/reference/features.md from what the installed first-party plugins list.

python scripts/features_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlxengine import Feature, InferenceEngine

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "features.md"
PLUGINS = ("core", "llm", "vlm", "embed", "diffusion", "video", "shard")
HEAD = """\
# Feature flags

Written by `scripts/features_table.py`; do not edit it by hand.

A *feature flag* is a choice (`llm.kv_bits`); a *capability* is a fact about a loaded model (`vision`).
What changes one answer is a field of `GenerateParams` instead. A stable feature is in use where its probe
passed on this machine; an experimental one has to be asked for. `mlxengine features NAME` says the value in
force, who set it, and why a feature is not available here.

The strongest of these decides: the call, the load, the engine (`features={"llm.batch": False}` on each), the
environment (`MLXENGINE_FEATURES=llm.max_batch=8,-llm.batch`), the
[configuration file](configuration-file.md), the default. Asking for a feature that is unknown or not
available raises, and so does setting a plugin's flag for a model that another one serves and whose
claim does not honour it; nothing is ignored.
"""


def cell(value: object) -> str:
    """A value as a table's cell."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value).replace("|", "\\|")


def row(feature: Feature[object]) -> str:
    """A feature as a table's row."""
    known = feature.provides.value if feature.provides else ""
    choices = f" ({', '.join(map(cell, feature.choices))})" if feature.choices else ""
    cells = (
        f"`{feature.name}`",
        f"{cell(feature.default)}{choices}",
        feature.stage.value,
        known,
        feature.summary,
    )
    return f"| {' | '.join(map(cell, cells))} |"


def table() -> str:
    """The whole page."""
    with InferenceEngine() as engine:
        parts = [HEAD]
        for plugin in PLUGINS:
            mine = [item for item in engine.features if engine.features.provider(item.name) == plugin]
            if mine:
                head = "| feature | default | stage | well-known name | what it does |\n|-|-|-|-|-|"
                parts.append("\n".join([f"## {plugin}\n", head, *map(row, mine)]) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    page = table()
    if "--check" in sys.argv[1:]:
        current = TARGET.exists() and TARGET.read_text() == page
        print("up to date" if current else f"{TARGET} is out of date: run scripts/features_table.py")
        return 0 if current else 1
    TARGET.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
