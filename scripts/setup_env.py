"""Make the development environment: third-party packages from an index, our own from this checkout.

Our own distributions are never looked up in an index (the name ``mlxengine`` is a stranger's there):
what they require of others is read from their ``pyproject.toml`` files and installed first, then they
are installed as editable, without dependencies. Uses the standard library only. ``uv`` does the
installing where it can; where it cannot (an index configuration that only pip understands, no wheel
for the machine), pip does.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# extras that a development machine can do without: back ends, Ray ("data", "serve"), frameworks that use us
HEAVY = {"diffusionkit", "mflux", "cuda12", "cuda13", "data", "serve"}
HEAVY |= {"langchain", "llama-index", "chroma", "lancedb", "mteb"}
OURS = "mlxengine"  # the first word of every first-party distribution's name
BUILD = ("hatchling>=1.27", "editables>=0.5", "pip>=24")


def normal(requirement: str) -> str:
    """The distribution's normalised name, as an index compares it."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0] if match else requirement).lower()


def projects() -> list[Path]:
    """Folders of the first-party distributions, core first."""
    nested = [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("docs/examples/*/pyproject.toml")]
    return [ROOT, *(path.parent for path in sorted(nested))]


def requirements(group: str, heavy: Sequence[str] = ()) -> list[str]:
    """What our distributions, with their extras, and a group of development tools require of others.

    ``heavy`` are the extras that are wanted though they are in ``HEAVY``.
    """
    found: list[str] = []
    for folder in projects():
        table = tomllib.loads((folder / "pyproject.toml").read_text())
        project = table["project"]
        found += project.get("dependencies", [])
        for name, items in project.get("optional-dependencies", {}).items():
            found += [] if name in HEAVY.difference(heavy) else items
        found += members(table.get("dependency-groups", {}), group)
    return [item for item in dict.fromkeys(found) if normal(item).partition("-")[0] != OURS]


def members(groups: dict[str, list[str | dict[str, str]]], name: str) -> list[str]:
    """The requirements of a dependency group, those of the groups that it includes with them."""
    found: list[str] = []
    for item in groups.get(name, []):
        found += [item] if isinstance(item, str) else members(groups, item["include-group"])
    return found


def run(*command: str | Path, check: bool = True, env: dict[str, str] | None = None) -> bool:
    """Run a command, its output shown; whether it succeeded."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, check=False)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed with exit code {done.returncode}")
    return done.returncode == 0


def uv_environment(python: Path) -> dict[str, str]:
    """The environment for uv, told which index pip is configured for."""
    env = dict(os.environ)
    if not env.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}:
        asked = (python, "-m", "pip", "config", "get", "global.index-url")
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if index := env.get("PIP_INDEX_URL") or said:
            env["UV_DEFAULT_INDEX"] = index
    return env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--versions", choices=("pinned", "lowest", "newest"), default="pinned")
    parser.add_argument("--group", default="dev", help="dependency group of the root pyproject.toml")
    parser.add_argument("--heavy", nargs="+", default=[], choices=sorted(HEAVY), help="extras as well")
    options = parser.parse_args()
    python = options.venv.absolute() / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", options.venv)
    wanted = requirements(options.group, options.heavy)
    # Which build of torch is right, pip's own configuration knows best.
    if torch := [item for item in wanted if normal(item) == "torch"]:
        run(python, "-m", "pip", "install", "-q", *torch)
    limits = ("-c", ROOT / "constraints.txt") if options.versions == "pinned" else ()
    lowest = ("--resolution", "lowest-direct") if options.versions == "lowest" else ()
    env = uv_environment(python)
    has_uv = run(python, "-m", "pip", "install", "-q", *limits, "uv", check=False)
    uv = (python, "-m", "uv", "pip", "install", "-q", "--python", python)
    if not (has_uv and run(*uv, *limits, *lowest, *BUILD, *wanted, check=False, env=env)):
        if lowest:
            raise SystemExit("only uv can install the lowest versions")
        print("uv could not install the packages; pip does it instead")
        run(python, "-m", "pip", "install", "-q", *limits, *BUILD, *wanted)
    editable = [part for folder in projects() for part in ("-e", folder)]
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", *editable)
    print(f"{options.venv} is ready: {len(wanted)} requirements, {len(projects())} first-party packages")


if __name__ == "__main__":
    main()
