"""Versions, ranges and extras of the first-party distributions hold together."""

from __future__ import annotations

import datetime
import re
import runpy
import shutil
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlxengine
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from .environments import ROOT, first_party

PROJECTS: dict[str, dict[str, Any]] = {
    folder.name if folder != ROOT else "mlxengine": tomllib.loads((folder / "pyproject.toml").read_text())
    for folder in first_party()
}
VERSION = Version(mlxengine.__version__)
EXAMPLES = ("mlxengine-markov", "mlxengine-audio", "mlxengine-forecast", "mlxengine-echo")


FRAGMENTS = ROOT / "changelog.d"


def requirements(project: dict[str, Any]) -> list[Requirement]:
    optional = [item for items in project.get("optional-dependencies", {}).values() for item in items]
    return [Requirement(item) for item in [*project.get("dependencies", []), *optional]]


def test_there_is_one_version_and_every_distribution_has_it() -> None:
    assert {name: version(name) for name in PROJECTS} == dict.fromkeys(PROJECTS, str(VERSION))


@pytest.mark.parametrize("name", [name for name in PROJECTS if name not in EXAMPLES])
def test_the_version_is_read_from_its_one_place(name: str) -> None:
    assert PROJECTS[name]["project"]["dynamic"] == ["version"]
    folder = ROOT if name == "mlxengine" else ROOT / "plugins" / name
    source = (folder / PROJECTS[name]["tool"]["hatch"]["version"]["path"]).resolve()
    assert source == ROOT / "core" / "mlxengine" / "_version.py"


@pytest.mark.parametrize("name", PROJECTS)
def test_a_requirement_on_one_of_ours_takes_this_minor_version_and_no_other(name: str) -> None:
    wanted = {f">={VERSION.major}.{VERSION.minor}", f"<{VERSION.major}.{VERSION.minor + 1}"}
    for item in requirements(PROJECTS[name]["project"]):
        if item.name in PROJECTS and item.name != name:
            assert {str(part) for part in item.specifier} == wanted, str(item)


@pytest.mark.parametrize("name", PROJECTS)
def test_every_upstream_package_has_a_lower_bound(name: str) -> None:
    for item in requirements(PROJECTS[name]["project"]):
        bounded = any(part.operator in (">=", "==", "~=") for part in item.specifier)
        assert bounded or item.name == "mlxengine", f"{name} requires {item} without a lower bound"


def test_every_plugin_of_the_tree_has_its_extra_and_all_brings_them() -> None:
    extras = PROJECTS["mlxengine"]["project"]["optional-dependencies"]
    kinds = [
        folder.name.removeprefix("mlxengine-") for folder in first_party() if folder.parent.name == "plugins"
    ]
    for kind in kinds:
        [item] = [Requirement(text) for text in extras[kind]]
        assert item.name == f"mlxengine-{kind}"
    [everything] = extras["all"]
    assert Requirement(everything).extras == set(kinds)
    for heavy in ("diffusionkit", "mflux"):
        [item] = [Requirement(text) for text in extras[heavy]]
        offered = PROJECTS["mlxengine-diffusion"]["project"]["optional-dependencies"]
        assert item.extras == {heavy}
        assert heavy in offered


@pytest.mark.parametrize("name", PROJECTS)
def test_the_license_is_stated_and_only_embeddings_are_gpl(name: str) -> None:
    stated = PROJECTS[name]["project"]["license"]
    assert stated == ("GPL-3.0-or-later" if name == "mlxengine-embed" else "Apache-2.0")


def test_constraints_are_names_and_exact_versions_alone() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert not [line for line in lines if line.startswith("mlxengine")]


def test_one_step_sets_the_version_of_every_distribution(tmp_path: Path) -> None:
    release = runpy.run_path(str(ROOT / "scripts" / "release.py"))
    for folder in first_party():
        target = tmp_path / folder.relative_to(ROOT)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "pyproject.toml", target)
    (tmp_path / "core/mlxengine").mkdir(parents=True)
    shutil.copy(ROOT / "core/mlxengine/_version.py", tmp_path / "core/mlxengine")
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    shutil.copytree(FRAGMENTS, tmp_path / "changelog.d")
    (tmp_path / "changelog.d/+a-door.fixed.md").write_text("A door that stuck\nopens.\n")
    release["bump"]("7.3.1", tmp_path, datetime.date(2030, 1, 2))
    assert '"7.3.1"' in (tmp_path / "core/mlxengine/_version.py").read_text()
    top, _, section = (tmp_path / "CHANGELOG.md").read_text().partition("\n## 7.3.1 - 2030-01-02\n\n")
    assert top.startswith("# Changelog\n")
    assert "\n- A door that stuck\n  opens.\n" in section.partition("\n### Fixed\n")[2]
    assert [path.name for path in (tmp_path / "changelog.d").iterdir()] == ["section.md.jinja"]
    for path in tmp_path.rglob("pyproject.toml"):
        for item in requirements(tomllib.loads(path.read_text())["project"]):
            if item.name in PROJECTS and item.specifier:
                assert {str(part) for part in item.specifier} == {">=7.3", "<7.4"}, str(item)


def test_every_fragment_of_the_changelog_has_a_name_and_a_type_and_says_something() -> None:
    types = [item["directory"] for item in PROJECTS["mlxengine"]["tool"]["towncrier"]["type"]]
    name = re.compile(rf"\+[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(types)})\.md")
    fragments = [path for path in FRAGMENTS.iterdir() if path.name != "section.md.jinja"]
    assert [path.name for path in fragments if not name.fullmatch(path.name)] == []
    assert [path.name for path in fragments if not path.read_text().strip()] == []
