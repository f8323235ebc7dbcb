"""Run the clauses: from a test class, or on an installed plugin."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import ClassVar

from attrs import frozen

# Importing these fills the list of clauses.
from . import _behaviour as _behaviour
from . import _bounds as _bounds
from . import _capability as _capability
from . import _contract as _contract
from ._clauses import CLAUSES, Broken, Clause, ClauseFailure, Part
from ._subject import Subject
from .specimen import Specimen


@frozen(kw_only=True)
class Outcome:
    """What became of one clause: ``failure`` is ``None`` where it is kept; ``checked`` is false where
    it needs a specimen and there was none."""

    clause: Clause
    failure: str | None = None
    checked: bool = True


def clauses(*parts: Part) -> tuple[Clause, ...]:
    """All clauses, or those of some parts, in the order in which they are checked."""
    wanted = parts or tuple(Part)
    return tuple(item for part in Part for item in CLAUSES.values() if item.part is part and part in wanted)


def check_plugin(
    name: str,
    specimen: Specimen | None = None,
    *,
    value: str | None = None,
    only: Collection[str] | None = None,
) -> Iterator[Outcome]:
    """Check an installed plugin, clause by clause.

    Args:
        name: its entry-point name.
        specimen: a model to try it on; without one, the clauses that need it are not checked.
        value: the entry point's value, for a plugin that is not installed.
        only: ids of the clauses to check; ``None`` checks all.

    Raises:
        PluginLoadError: no installed distribution provides the plugin, or several do.
    """
    with Subject(name, value, specimen) as subject:
        for item in clauses():
            if only is not None and item.id not in only:
                continue
            if specimen is None and item.needs_specimen:
                yield Outcome(clause=item, checked=False)
                continue
            try:
                item.hold(subject)
            except ClauseFailure as failure:
                yield Outcome(clause=item, failure=str(failure))
            else:
                yield Outcome(clause=item)


class PluginConformance:
    """Subclass this in a test module, name the plugin and give a specimen.

    The pytest plugin ``mlxengine.testing.pytest`` turns `test_keeps` into one test for each clause.

    Attributes:
        name: the plugin's entry-point name.
        plugin: the entry point's value; ``None`` takes the installed one.
        specimen: a small model, and what to ask of it.
    """

    name: ClassVar[str]
    plugin: ClassVar[str | None] = None
    specimen: ClassVar[Specimen]

    def test_keeps(self, clause: Clause, subject: Subject) -> None:
        """The plugin keeps the clause."""
        clause.hold(subject)


__all__ = ["Broken", "Outcome", "Part", "PluginConformance", "check_plugin", "clauses"]
