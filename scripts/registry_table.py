"""Write the tables of docs/reference/registry.md: which facts the first-party plugins' entries state.

python scripts/registry_table.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mlxengine import InferenceEngine, ModelConfiguration

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "registry.md"
FACTS = {
    "llm": ("parameter_count", "context_length", "license", "memory_bytes", "template_notes"),
    "vlm": ("parameter_count", "context_length", "license", "memory_bytes", "template_notes", "image_rules"),
    "embed": ("dimension", "max_length", "license", "memory_bytes", "pooling"),
    "diffusion": ("license", "memory_bytes", "steps", "guidance", "image_size"),
    "video": ("license", "memory_bytes", "frames", "fps", "video_size"),
}
MARK = "<!-- tables -->\n\n"


def count(items: list[ModelConfiguration], name: str, stated: Iterator[bool]) -> str:
    """How many entries have a fact, and for how many a source is named."""
    found = sum(getattr(item, name, None) is not None for item in items)
    return f"{found} ({sum(stated)})"


def tables() -> str:
    """A table for each kind."""
    parts = []
    with InferenceEngine() as engine:
        for kind, facts in FACTS.items():
            listed = [item for item in engine.registry.filter(kind=kind) if item.id.count("/") == 1]
            originals = [item for item in listed if item.base_model is None]
            cells = [
                count(
                    originals,
                    name,
                    (engine.registry.provenance(item.id, name) is not None for item in originals),
                )
                for name in facts
            ]
            head = " | ".join(name.replace("_", " ") for name in facts)
            parts.append(
                f"### `{kind}`\n\n"
                f"| models | conversions | {head} |\n|{'-|' * (len(facts) + 2)}\n"
                f"| {len(originals)} | {len(listed) - len(originals)} | {' | '.join(cells)} |\n"
            )
    return "\n".join(parts)


def main() -> int:
    """Write the tables, or with --check say whether they are up to date."""
    page = TARGET.read_text()
    text = page.partition(MARK)[0] + MARK + tables()
    if "--check" in sys.argv[1:]:
        current = page == text
        print("up to date" if current else f"{TARGET} is out of date: run scripts/registry_table.py")
        return 0 if current else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
