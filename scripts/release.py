"""Set the version of every first-party distribution: ``make release VERSION=0.2.0``.

Writes ``core/mlxengine/_version.py``, moves the ranges in which our distributions require each other, and
makes the fragments of ``changelog.d`` a section of ``CHANGELOG.md``. Commits nothing.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RANGE = re.compile(r"(mlxengine[a-z-]*(?:\[[a-z,]+\])?)>=[0-9.]+,<[0-9.]+")


def bump(version: str, root: Path = ROOT, today: datetime.date | None = None) -> list[Path]:
    """Write the version everywhere; the files that changed."""
    found = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
    if found is None:
        raise SystemExit(f"{version!r} is not a version such as 0.2.0")
    major, minor = int(found[1]), int(found[2])
    wanted = rf"\1>={major}.{minor},<{major}.{minor + 1}"
    changed = []

    def write(path: Path, pattern: re.Pattern[str], text: str) -> None:
        before = path.read_text()
        after = pattern.sub(text, before)
        if after != before:
            path.write_text(after)
            changed.append(path)

    source = root / "core" / "mlxengine" / "_version.py"
    write(source, re.compile(r'__version__ = ".*"'), f'__version__ = "{version}"')
    for path in (root / "pyproject.toml", *root.glob("plugins/*/pyproject.toml"),
                 *root.glob("docs/examples/*/pyproject.toml")):  # fmt: skip
        write(path, RANGE, wanted)
        if "examples" in path.parts:
            write(path, re.compile(r'^version = ".*"$', re.MULTILINE), f'version = "{version}"')
    day = (today or datetime.date.today()).isoformat()
    build = ("towncrier", "build", "--yes", "--version", version, "--date", day)
    subprocess.run([sys.executable, "-m", *build], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return [*changed, root / "CHANGELOG.md"]


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: make release VERSION=0.2.0")
    for path in bump(sys.argv[1]):
        print(f"wrote {path.relative_to(ROOT)}")
    print(f"now: make test && git commit -am 'release: {sys.argv[1]}' && git tag v{sys.argv[1]}")


if __name__ == "__main__":
    main()
