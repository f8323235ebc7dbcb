"""The script that compares the registry with a hub finds what is right, wrong and missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.hub import weights
from tests.hub.server import HubServer

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_registry.py"
ENTRIES = f"""
[[models]]
id = "{weights.MINILM}"
kind = "checked"
size = "22.7M"
license = "apache-2.0"
quantization = "none"
context_length = 4096
[[models]]
id = "no/such-model"
kind = "checked"
"""


def test_it_confirms_what_agrees_and_names_what_does_not(
    hub: HubServer, hub_home: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    weights.populate(hub.repos, weights.MINILM)
    config, result = tmp_path / "mlxengine.toml", tmp_path / "result.json"
    config.write_text(ENTRIES)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--endpoint", hub.endpoint, "--kind", "checked", "--json", str(result)],
        env=env | {"MLXENGINE_CONFIG": str(config), "MLXENGINE_FEATURES": "", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(result.read_text())
    assert found[weights.MINILM]["fields"] == ["license", "quantization", "size"]
    assert found[weights.MINILM]["wrong"] == [["context_length", 4096, 512]]
    assert "no/such-model" in found["no/such-model"]["error"]
    assert "2 entries, 2 wrong" in done.stdout
