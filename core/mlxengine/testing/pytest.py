"""The opt-in pytest plugin: ``pytest_plugins = ["mlxengine.testing.pytest"]`` in a conftest."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from ._clauses import ClauseFailure
from ._subject import Subject
from .conformance import PluginConformance, clauses


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each clause."""
    if metafunc.cls is not None and issubclass(metafunc.cls, PluginConformance):
        metafunc.parametrize("clause", clauses(), ids=lambda item: item.id)


@pytest.fixture(scope="class")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The plugin that a `PluginConformance` class names, loaded once for its clauses."""
    cls = request.cls
    specimen = cls.specimen(cls()) if callable(cls.specimen) else cls.specimen
    with Subject(cls.name, cls.plugin, specimen) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show a clause that is not kept by its own words, instead of a traceback through the kit."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, ClauseFailure):
        report.longrepr = str(call.excinfo.value)
    return report
