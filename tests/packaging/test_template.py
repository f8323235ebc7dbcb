"""`mlxengine plugins new` writes a package that works, and `plugins check` tries an installed plugin."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mlxengine.testing import clauses

from .environments import Environment, build, run


def test_the_template_builds_installs_and_keeps_every_clause(
    bare: Environment, tmp_path: Path, mypy_cache: Path
) -> None:
    said = bare.command("plugins", "new", "speech", "--into", str(tmp_path)).stdout
    folder = tmp_path / "mlxengine-speech"
    assert str(folder / "pyproject.toml") in said.replace("\n", "")
    build(folder, tmp_path / "made")
    Environment(bare.folder, tmp_path / "made").ours("mlxengine-speech")
    bare.others("pytest")
    done = run([bare.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder], cwd=folder)
    assert f"{len(clauses())} passed" in done.stdout
    check = [bare.folder / "bin" / "mlxengine", "plugins", "check", "speech", "--json"]
    checked = run([*check, "--specimen", "tests.test_conformance:SPECIMEN"], cwd=folder)
    states = {item["clause"]: item["state"] for item in json.loads(checked.stdout)["clauses"]}
    assert states == dict.fromkeys((item.id for item in clauses()), "kept")
    run([sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "110", folder])
    run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", mypy_cache, folder / "src"], cwd=folder)


def test_checking_without_a_specimen_says_what_was_not_checked(bare: Environment) -> None:
    bare.ours("mlxengine-markov")
    said = bare.command("plugins", "check", "markov").stdout
    assert "contract/claim-is-pure" in said
    assert "not checked" in said
    assert "NOT KEPT" not in said


@pytest.mark.parametrize("name", ["Speech", "my-kind", "class", "../up", ""])
def test_a_name_that_cannot_be_a_plugins_is_refused(
    name: str, core_alone: Environment, tmp_path: Path
) -> None:
    done = core_alone.command("plugins", "new", name, "--into", str(tmp_path), check=False)
    assert done.returncode == 2
    assert not list(tmp_path.glob("mlxengine-*"))
