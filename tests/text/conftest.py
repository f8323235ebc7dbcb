"""The plugins of text, each with a tiny model: what holds for one of them holds for the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .llama import Llama
from .subjects import KINDS, Subject


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each kind's tiny model."""
    return {kind.name: kind.folder(tmp_path_factory.mktemp(kind.name)) for kind in KINDS}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def subject(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[Subject]:
    """A plugin's hooks, called as the engine calls them; what was loaded is closed afterwards."""
    found = Subject(request.param, folders[request.param.name])
    yield found
    found.plugin.close()


@pytest.fixture(scope="session")
def llamas(folders: dict[str, Path]) -> dict[str, Llama]:
    """The tiny models in numpy."""
    return {kind.name: Llama(folders[kind.name], kind.stored) for kind in KINDS}


@pytest.fixture
def llama(subject: Subject, llamas: dict[str, Llama]) -> Llama:
    """The subject's tiny model in numpy."""
    return llamas[subject.kind.name]
