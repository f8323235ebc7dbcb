"""A user's program and a plugin pass strict type checking against the installed packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import Environment, run

SAMPLE = Path(__file__).parent / "sample.py"
WRONG = {
    "GenerateParams(max_token=8)": "max_token",
    "GenerateParams(temperature='hot')": "temperature",
    "InferenceEngine().load_text('a').generate(3)": "generate",
    "InferenceEngine().load('a').generate('b')": "generate",
    "InferenceEngine().load_as(GenerateParams, 'a')": "load_as",
    "InferenceEngine().load_text('a', plugn='b')": "plugn",
    "InferenceEngine(memory_bugdet='8GB')": "memory_bugdet",
    "AsyncInferenceEngine(offline='yes')": "offline",
    "InferenceEngine().load_embeddings('a').embed('b', truncate=3)": "embed",
    "InferenceEngine().load_text('a').session(tool_round=3)": "tool_round",
    "Message.user('a').parts.append(TextPart('b'))": "append",
}


def wrong_program(folder: Path) -> Path:
    """One wrong use a line, from the second line on."""
    program = folder / "wrong.py"
    names = "AsyncInferenceEngine, GenerateParams, InferenceEngine, Message, TextPart"
    program.write_text(f"from mlxengine import {names}\n" + "\n".join(WRONG) + "\n")
    return program


def mypy(path: Path, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    # from a folder without our configuration: what a user sees
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), str(path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_users_program_and_a_plugin_pass_strict_mypy(tmp_path: Path, mypy_cache: Path) -> None:
    done = mypy(SAMPLE, tmp_path, mypy_cache)
    assert done.returncode == 0, done.stdout


def test_wrong_uses_of_the_api_are_found_by_mypy(tmp_path: Path, mypy_cache: Path) -> None:
    program = wrong_program(tmp_path)
    done = mypy(program, tmp_path, mypy_cache)
    for line, word in enumerate(WRONG.values(), 2):
        said = [out for out in done.stdout.splitlines() if f"wrong.py:{line}:" in out]
        assert any(word in out for out in said), (line, done.stdout)


@pytest.mark.slow
def test_pyright_agrees_on_both(bare: Environment, tmp_path: Path) -> None:
    # pyright's checker from wheels alone: pyright itself fetches a toolchain when it is run
    bare.others("basedpyright")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    (tmp_path / "sample.py").write_text(SAMPLE.read_text())
    wrong_program(tmp_path)
    words = [bare.folder / "bin" / "basedpyright", "--outputjson", "--pythonpath", bare.python]
    done = run([*words, "sample.py", "wrong.py"], cwd=tmp_path, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = {name: set[int]() for name in ("sample.py", "wrong.py")}
    for item in found:
        if item["severity"] == "error":
            lines[Path(item["file"]).name].add(item["range"]["start"]["line"] + 1)
    assert lines == {"sample.py": set(), "wrong.py": set(range(2, 2 + len(WRONG)))}, found
