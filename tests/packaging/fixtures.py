"""Our wheels and environments to install them in, each made once for all the tests that can share it."""

from __future__ import annotations

import os
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hub.weights import locked

from .environments import ROOT, Environment, build, first_party


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of every first-party distribution."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # what the workers of a run have in common
    target = folder / "wheels"
    with locked(folder / "wheels.lock"):
        if not target.exists():
            making = folder / "making-wheels"
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda project: build(project, making), first_party()))
            making.rename(target)
    return target


@pytest.fixture(scope="session")
def core_requirements() -> list[str]:
    """What core requires of others."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


def _with_core(folder: Path, wheels: Path, requirements: list[str]) -> Environment:
    environment = Environment.make(folder, wheels)
    environment.others(*requirements)
    environment.ours("mlxengine")
    return environment


@pytest.fixture
def bare(tmp_path: Path, wheels: Path, core_requirements: list[str]) -> Environment:
    """A fresh environment with core's wheel and what core requires, nothing else."""
    return _with_core(tmp_path / "env", wheels, core_requirements)


@pytest.fixture(scope="session")
def core_alone(
    tmp_path_factory: pytest.TempPathFactory, wheels: Path, core_requirements: list[str]
) -> Environment:
    """The same as `bare`, for tests that install nothing into it."""
    return _with_core(tmp_path_factory.mktemp("core") / "env", wheels, core_requirements)


@pytest.fixture(scope="session")
def mypy_cache() -> Path:
    """What mypy remembers of our packages as a user's checks see them."""
    return ROOT / ".cache" / "mypy-users"
