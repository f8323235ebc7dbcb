"""Run a Python program with this checkout's packages where nothing of ours is installed.

    python scripts/uninstalled.py -m benchmarks.gpu.streams --tiny
    python scripts/uninstalled.py -m mlxengine doctor

The sources are put on the path, and a folder with the name, version, requirements and entry points of each of
our distributions, so that everything finds them as it does for a user. Third-party packages have to be there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(folder: Path) -> dict[str, str]:
    """This process's environment, our packages on its ``PYTHONPATH``; writes their metadata to ``folder``."""
    about: dict[str, str] = {}
    exec((ROOT / "core" / "mlxengine" / "_version.py").read_text(), about)
    version = about["__version__"]
    places = [folder]
    for project in (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))):
        table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        info = folder / f"{table['name'].replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {table['name']}\nVersion: {version}\n"
        needs = "".join(f"Requires-Dist: {item}\n" for item in table.get("dependencies", ()))
        (info / "METADATA").write_text(head + needs)
        points = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in items.items())
            for group, items in table.get("entry-points", {}).items()
        ]
        (info / "entry_points.txt").write_text("\n".join(points))
        places.append(ROOT / "core" if project == ROOT else project / "src")
    path = [*map(str, places), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([sys.executable, *sys.argv[1:]], env=environment(Path(scratch)), check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
