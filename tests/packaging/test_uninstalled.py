"""The checkout works where nothing of ours is installed: the plugins' tests and the benchmarks."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from .environments import ROOT

BENCHMARKS = ("gpu.streams", "gpu.first_token", "gpu.steps", "gpu.beside", "language.stall")


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third-party packages of this environment, ours left out."""
    folder = tmp_path_factory.mktemp("libraries")
    for place in site.getsitepackages():
        for item in Path(place).iterdir():
            if "mlxengine" not in item.name and not (folder / item.name).exists():
                (folder / item.name).symlink_to(item)
    return folder


def run(libraries: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # the interpreter under the virtual environment, which does not know what is installed in that
    return subprocess.run(
        [str(Path(sys.executable).resolve()), *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_tests_of_plugins_run_uninstalled_and_every_outcome_is_counted(
    libraries: Path, tmp_path: Path
) -> None:
    tests, output = tmp_path / "test_them.py", tmp_path / "found.json"
    tests.write_text(
        "import time\n"
        "from importlib.metadata import entry_points\n"
        "def test_plugins_are_found():\n"
        "    names = {point.name for point in entry_points(group='mlxengine') if point.load()}\n"
        "    assert names == {'llm', 'vlm', 'embed', 'diffusion', 'video', 'serve', 'ray', 'shard'}\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_real_weights(): raise RuntimeError('it could not be installed')\n"
        "def test_long(): time.sleep(100)\n"
        "def test_after_it(): pass\n"
    )
    script = ("scripts/test_gpu.py", "--workers", "1", "--seconds", "10", "--output", str(output), str(tests))
    done = run(libraries, *script)
    assert done.returncode == 1, done.stderr
    found = json.loads(output.read_text())
    assert found["total"] == {"passed": 1, "failed": 1, "without weights": 1, "not run": 2}
    assert list(found["failed"].values()) == ["E   assert 1 == 2"]
    (trace,) = found["traces"].values()
    assert "def test_wrong" in trace or "in test_wrong" in trace
    assert list(found["seconds"]) == [next(iter(found["files"]))]


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_for_a_gpu_runs_on_a_small_model(libraries: Path, name: str) -> None:
    done = run(libraries, "scripts/uninstalled.py", "-m", f"benchmarks.{name}", "--tiny", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines
    assert "left out" not in done.stderr
