from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from .environments import ROOT, Environment, build, first_party


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of every first-party distribution."""
    target = tmp_path_factory.mktemp("wheels")
    for folder in first_party():
        build(folder, target)
    return target


@pytest.fixture(scope="session")
def core_requirements() -> list[str]:
    """What core requires of others."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


@pytest.fixture
def bare(tmp_path: Path, wheels: Path, core_requirements: list[str]) -> Environment:
    """A fresh environment with core's wheel and what core requires, nothing else."""
    environment = Environment.make(tmp_path / "env", wheels)
    environment.others(*core_requirements)
    environment.ours("mlxengine")
    return environment
