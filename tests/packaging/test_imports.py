"""What importing costs: no model library, and little time."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from mlxengine.testing._probe import HEAVY

from tests.starts import processor_seconds

from .environments import first_party

PLUGINS = {
    folder.name: tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    for folder in first_party()[1:]
}


def imported(code: str) -> set[str]:
    """The top-level packages that a fresh process has imported after running the code."""
    tail = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import mlxengine",
        "from mlxengine import InferenceEngine, GenerateParams",
        "from mlxengine import *",
        "from mlxengine import InferenceEngine\nwith InferenceEngine() as engine: list(engine.registry)",
    ],
)
def test_core_imports_no_model_library_until_a_model_is_loaded(code: str) -> None:
    assert imported(code) & {*HEAVY, "torch", "tqdm", "requests", "httpx"} == set()


@pytest.mark.parametrize("distribution", PLUGINS)
def test_a_plugins_entry_point_imports_no_model_library(distribution: str) -> None:
    for value in PLUGINS[distribution]["mlxengine"].values():
        module = value.partition(":")[0]
        assert imported(f"import {module}") & set(HEAVY) == set()


def test_importing_the_engine_takes_at_most_two_and_a_half_times_attrs_and_pluggy(tmp_path: Path) -> None:
    codes = {
        "nothing": "pass",
        "base": "import attrs, pluggy",
        "ours": "from mlxengine import InferenceEngine, GenerateParams",
    }
    contenders = {name: [sys.executable, "-c", code] for name, code in codes.items()}
    took = processor_seconds(contenders, tmp_path)
    assert took["ours"] - took["nothing"] <= 2.5 * (took["base"] - took["nothing"]), took
