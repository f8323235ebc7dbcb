"""The table of features in the documentation is what the installed plugins say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_features_is_current():
    found = subprocess.run(
        [sys.executable, "scripts/features_table.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, f"{found.stdout}{found.stderr}\nRun scripts/features_table.py."
