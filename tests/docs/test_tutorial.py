"""The plugin tutorial, followed literally from an empty folder, ends in a plugin that keeps every clause."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from mlxengine.testing import clauses

from tests.packaging.environments import CLEAN, Environment

from .blocks import ROOT, blocks

PAGE = ROOT / "docs/tutorials/first-plugin.md"
_CAPTION = re.compile(r":caption: (\S+)\n\n(.*)", re.DOTALL)


def test_the_plugin_tutorial_followed_literally_ends_in_a_passing_plugin(
    tmp_path: Path, wheels: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    said: dict[str, str] = {}
    for block in blocks(PAGE):
        if block.info.startswith("{code-block}"):
            found = _CAPTION.match(block.text)
            assert found is not None, block
            target = project / found[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(found[2])
        elif block.info == "console":
            for line in block.text.splitlines():
                said[line] = follow(line.removeprefix("$ "), project, wheels)
    assert re.search(r"chain\s+my-markov\s+0\.1\.0\s+active", said["$ mlxengine plugins"])
    assert said["$ python try.py"].split()[0] in ("cat", "dog")
    assert f"{len(clauses())} passed" in said["$ python -m pytest -q"]


def follow(command: str, project: Path, wheels: Path) -> str:
    """Run one command of the page; what it builds is built already, and what it fetches is pinned."""
    environment = Environment(project / ".venv", wheels)
    if command == "python -m venv .venv":
        Environment.make(project / ".venv", wheels)
        return ""
    if command.startswith(". "):
        return ""  # the commands run in the environment anyway
    if command == "pip wheel --no-deps --wheel-dir wheels ../mlxengine":
        (project / "wheels").symlink_to(wheels)
        return ""
    if command == "pip install --no-index --no-deps --find-links wheels mlxengine":
        Environment(project / ".venv", project / "wheels").ours("mlxengine")
        return ""
    if command == 'pip install -e ".[test]"':
        environment.others("attrs", "pluggy", "huggingface_hub", "pytest", "hatchling", "editables")
        environment.ours("--no-build-isolation", "-e", str(project))
        return ""
    env = {key: value for key, value in os.environ.items() if key not in CLEAN}
    env["PATH"] = f"{project / '.venv' / 'bin'}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
