"""A user's program and a plugin pass strict type checking against the installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SAMPLE = Path(__file__).parent / "sample.py"


def mypy(path: Path, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    # from a folder without our configuration: what a user sees
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), str(path)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_users_program_and_a_plugin_pass_strict_mypy(tmp_path: Path, mypy_cache: Path) -> None:
    done = mypy(SAMPLE, tmp_path, mypy_cache)
    assert done.returncode == 0, done.stdout


def test_wrong_uses_of_the_api_are_found_by_mypy(tmp_path: Path, mypy_cache: Path) -> None:
    wrong = {
        "GenerateParams(max_token=8)": "max_token",
        "GenerateParams(temperature='hot')": "temperature",
        "InferenceEngine().load_text('a').generate(3)": "generate",
        "InferenceEngine().load('a').generate('b')": "generate",
        "Message.user('a').parts.append(TextPart('b'))": "append",
    }
    program = tmp_path / "wrong.py"
    program.write_text(
        "from mlxengine import GenerateParams, InferenceEngine, Message, TextPart\n" + "\n".join(wrong) + "\n"
    )
    done = mypy(program, tmp_path, mypy_cache)
    for line, word in enumerate(wrong.values(), 2):
        said = [out for out in done.stdout.splitlines() if f"wrong.py:{line}:" in out]
        assert any(word in out for out in said), (line, done.stdout)
