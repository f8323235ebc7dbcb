"""The tables of features and of the registry in the documentation are what the installed plugins say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["scripts/features_table.py", "scripts/registry_table.py"])
def test_the_table_is_current(script):
    found = subprocess.run(
        [sys.executable, script, "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, f"{found.stdout}{found.stderr}\nRun {script}."
