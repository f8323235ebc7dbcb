"""Make an environment with an optional back end and run its checks in it.

    python run.py diffusionkit --venv FOLDER      (or mflux)

The optional libraries bring torch and more, so they do not belong in the environment of the daily tests.
Uses the standard library only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
PLUGIN = ROOT / "plugins" / "mlxengine-diffusion"
# Its metadata resolves beside nothing here: the extra is what it imports.
WITHOUT_METADATA = {"mflux": "mflux>=0.24,<0.25"}
TOOLS = ("hatchling>=1.27", "editables", "pytest>=8", "pytest-timeout")


def requirements(extra: str) -> list[str]:
    """What core, the plugin and the extra require of others."""
    found: list[str] = []
    for folder in (ROOT, PLUGIN):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        found += project["dependencies"]
        found += project["optional-dependencies"].get("cpu", []) if sys.platform == "linux" else []
        found += project["optional-dependencies"].get(extra, []) if folder == PLUGIN else []
    return [item for item in found if not item.startswith("mlxengine")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extra", choices=("diffusionkit", "mflux"))
    parser.add_argument("--venv", type=Path, required=True)
    options = parser.parse_args()
    python = options.venv.absolute() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", options.venv], check=True)
    pip = [python, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, *TOOLS, *requirements(options.extra)], check=True)
    if name := WITHOUT_METADATA.get(options.extra):
        subprocess.run([*pip, "--no-deps", name], check=True)
    ours = [*pip, "--no-index", "--no-deps", "--no-build-isolation", "-e", ROOT, "-e", PLUGIN]
    subprocess.run(ours, check=True)
    check = [python, "-m", "pytest", "-q", "-s", f"check_{options.extra}.py"]
    place = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider"]
    raise SystemExit(subprocess.run([*check, *place], cwd=HERE, check=False).returncode)


if __name__ == "__main__":
    main()
