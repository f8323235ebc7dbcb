"""The demonstration of the README does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT


@pytest.mark.slow
def test_the_demo_answers_compares_paints_and_sees(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The capital of France is Paris." in done.stdout
    assert '{"colour": "red", "shape": "circle"}' in done.stdout
    assert (tmp_path / "demo.png").stat().st_size > 1000
