"""Fill a folder with the wheels that an offline installation needs, for this Python and this machine.

    python3 scripts/wheels.py wheels serve llm cpu

The words are extras of ``mlxengine``. Our own wheels are built from this checkout; what they require of
others is fetched from an index, which is never asked for a name of ours (they are strangers' there).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from setup_env import OURS, normal, projects


def needed(extras: list[str]) -> tuple[list[Path], list[str]]:
    """The folders of our distributions that these extras bring, and what they need of others."""
    tables = {}
    for folder in projects():
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        tables[normal(project["name"])] = folder, project
    ours: dict[Path, None] = {}
    others: dict[str, None] = {}
    waiting = [f"{OURS}[{','.join(extras)}]"]
    seen = set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        name = normal(asked)
        if name not in tables:
            others[asked] = None
            continue
        folder, project = tables[name]
        ours[folder] = None
        waiting += project.get("dependencies", [])
        brackets = re.match(r"[^\[;]*\[([^\]]*)\]", asked)
        for extra in brackets[1].split(",") if brackets else []:
            if extra and extra.strip() not in project.get("optional-dependencies", {}):
                raise SystemExit(f"{project['name']} has no extra {extra!r}")
            waiting += project.get("optional-dependencies", {}).get(extra.strip(), [])
    return list(ours), list(others)


def main() -> None:
    """Build ours, fetch the others."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    target, pip = sys.argv[1], [sys.executable, "-m", "pip"]
    ours, others = needed(sys.argv[2:])
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", target, *map(str, ours)], check=True)
    subprocess.run([*pip, "download", "-q", "--only-binary", ":all:", "-d", target, *others], check=True)
    print(f"{target} has {len(ours)} wheels of ours, and what {len(others)} requirements bring")


if __name__ == "__main__":
    main()
