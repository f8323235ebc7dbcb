"""Wheels of this checkout, wheels made of thin air, and fresh environments to install them in."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
CLEAN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONPYCACHEPREFIX",
    "VIRTUAL_ENV",
    "MLXENGINE_FEATURES",
    "MLXENGINE_CONFIG",
)

SIZES = ROOT / "docs" / "reference" / "sizes.md"
INSTALLED = "from importlib.metadata import distributions; print(*[item.name for item in distributions()])"


def first_party() -> list[Path]:
    """Folders of our own distributions, core first."""
    nested = [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("docs/examples/*/pyproject.toml")]
    return [ROOT, *(path.parent for path in sorted(nested))]


def build(folder: Path, target: Path) -> None:
    """An sdist of the folder, and the wheel built from that sdist, into ``target``."""
    command = [sys.executable, "-m", "build", "-q", "--no-isolation", "-o", str(target), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def conjure(
    target: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, str], version: str = "1.0"
) -> str:
    """Write a wheel from module texts and ``mlxengine`` entry points; the distribution's name."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    points = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
    files = {
        **modules,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[mlxengine]\n{points}",
    }
    with zipfile.ZipFile(target / f"{stem}-py3-none-any.whl", "w") as wheel:
        record = []
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(text.encode())}\n")
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return name


@frozen
class Environment:
    """A virtual environment of its own, and the folder that first-party wheels come from."""

    folder: Path
    wheels: Path

    @classmethod
    def make(cls, folder: Path, wheels: Path) -> Environment:
        """An empty one."""
        run([sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, folder])
        return cls(folder, wheels)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        [found] = self.folder.glob("lib/python*/site-packages")
        return found

    def ours(self, *names: str) -> None:
        """Install first-party or conjured wheels: from the folder alone, without what they require."""
        self._pip("install", "--no-index", "--find-links", str(self.wheels), "--no-deps", *names)

    def others(self, *requirements: str) -> None:
        """Install third-party packages, from an index, at the versions that make uses."""
        self._pip("install", "-c", str(ROOT / "constraints.txt"), *requirements)

    def uninstall(self, *names: str) -> None:
        self._pip("uninstall", *names)

    def _pip(self, verb: str, *arguments: str) -> None:
        run([sys.executable, "-m", "uv", "pip", verb, "-q", "--python", self.python, *arguments])

    def run(self, code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Python code in the environment, outside of the checkout."""
        return run([self.python, "-c", code, *arguments], cwd=self.folder, check=check)

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the installed ``mlxengine`` command."""
        return run([self.folder / "bin" / "mlxengine", *words], cwd=self.folder, check=check)


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command without what this environment says about ours."""
    env = {key: value for key, value in os.environ.items() if key not in CLEAN}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)[:300]}\n{done.stdout}{done.stderr}"
    return done


def installed(environment: Environment) -> set[str]:
    """The normalised names of the distributions in the environment."""
    return {re.sub(r"[-_.]+", "-", name).lower() for name in environment.run(INSTALLED).stdout.split()}


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def published() -> dict[str, float]:
    """What the documentation says an extra takes on the disk, in megabytes."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) MB", SIZES.read_text(), re.MULTILINE)
    return {name: float(size.replace(",", "")) for name, size in rows}
