"""The public CI runs nobody's code that can change behind its name."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_action_is_pinned_to_a_commit_and_says_its_version():
    found = [
        line.split("uses:")[1].strip()
        for path in sorted((ROOT / ".github").rglob("*.y*ml"))
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert found
    assert not [item for item in found if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", item)]
