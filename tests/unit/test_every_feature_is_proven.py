"""No feature is advertised that no test proves with a real inference (the marker ``feature("name")``)."""

from __future__ import annotations

import re
from pathlib import Path

from mlxengine import InferenceEngine

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"""mark\.feature\(\s*["']([a-z]\w*\.\w+)["']""")


def marked() -> set[str]:
    found: set[str] = set()
    for folder in ("tests", "plugins", "docs/examples"):
        for file in (ROOT / folder).rglob("test_*.py"):
            found.update(MARK.findall(file.read_text(encoding="utf-8")))
    return found


def listed() -> set[str]:
    with InferenceEngine() as engine:
        ours = {"core", "llm", "vlm", "embed", "diffusion", "video", "shard"}
        return {item.name for item in engine.features if engine.features.provider(item.name) in ours}


def test_every_feature_has_a_test_that_proves_it() -> None:
    assert listed() - marked() == set()


def test_no_test_claims_to_prove_a_feature_that_does_not_exist() -> None:
    missing = {name for name in marked() if name.split(".")[0] in {item.split(".")[0] for item in listed()}}
    assert missing - listed() == set()
