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
quantization = "fp32"
parameter_count = 22713216
memory_bytes = 90852864
context_length = 4096
[[models]]
id = "{weights.SMOLLM2}"
kind = "checked"
parameter_count = 200000000
memory_bytes = 900000
base_model = "HuggingFaceTB/SmolLM2-135M"
template_notes = "system messages; tools; thinks unless enable_thinking=False"
[[models]]
id = "no/such-model"
kind = "checked"
"""


def test_it_confirms_what_agrees_and_names_what_does_not(
    hub: HubServer, hub_home: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    weights.populate(hub.repos, weights.MINILM, weights.SMOLLM2)
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
    exact = ["license", "memory_bytes", "parameter_count", "quantization", "size"]
    assert found[weights.MINILM]["fields"] == exact
    assert found[weights.MINILM]["wrong"] == [["context_length", 4096, 512]]
    wrong = {name: seen for name, _, seen in found[weights.SMOLLM2]["wrong"]}
    assert set(wrong) == {"parameter_count", "memory_bytes", "template_notes"}
    assert wrong["parameter_count"] == 134_515_008
    assert wrong["template_notes"] in ("enable_thinking", "tools")
    assert "no/such-model" in found["no/such-model"]["error"]
    assert "3 entries, 3 wrong" in done.stdout
    assert '"from": {"hub": "license memory_bytes parameter_count quantization size"}' in done.stdout
