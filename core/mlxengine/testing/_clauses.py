"""What a clause of the conformance kit is, and the list of them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen

from ..errors import is_ctrl_c

if TYPE_CHECKING:
    from ._subject import Subject


class Part(enum.StrEnum):
    """What a clause is about, and what it needs: the contract needs no model to be loaded."""

    CONTRACT = "contract"
    BEHAVIOUR = "behaviour"
    CAPABILITY = "capability"


class ClauseFailure(AssertionError):
    """A plugin does not keep a clause; the message says which, what was found, and why it matters."""

    def __init__(self, clause: Clause, plugin: str, found: str) -> None:
        self.clause = clause
        self.found = found
        super().__init__(
            f"Plugin {plugin!r} does not keep the clause {clause.id}: {clause.says}\n"
            f"Found: {found}\nWhy it matters: {clause.why}"
        )


class Broken(Exception):
    """What a clause's function raises: only what was found."""


@frozen(kw_only=True)
class Clause:
    """One thing that every plugin promises.

    Args:
        name: for example ``"claim-is-pure"``.
        part: contract, behaviour or capability.
        says: the promise, as a sentence.
        why: what breaks for users of a plugin that does not keep it.
        needs_specimen: whether it can be checked only on a model.
        check: looks; raises what it finds.
    """

    name: str
    part: Part
    says: str
    why: str
    needs_specimen: bool
    check: Callable[[Subject], None]

    @property
    def id(self) -> str:
        return f"{self.part}/{self.name}"

    def hold(self, subject: Subject) -> None:
        """Check the clause.

        Raises:
            ClauseFailure: the plugin does not keep it.
        """
        try:
            self.check(subject)
        except Broken as broken:
            raise ClauseFailure(self, subject.name, str(broken)) from broken.__cause__
        except ClauseFailure:
            raise
        except BaseException as error:  # sys.exit and a native panic are a plugin's faults like any other
            if is_ctrl_c(error):
                raise
            raise ClauseFailure(self, subject.name, f"{type(error).__name__}: {error}") from error


CLAUSES: dict[str, Clause] = {}


def clause(
    part: Part, says: str, *, why: str, needs_specimen: bool | None = None
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Make a function a clause, named after it."""

    def add(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
        name = check.__name__.replace("_", "-")
        needs = part is not Part.CONTRACT if needs_specimen is None else needs_specimen
        made = Clause(name=name, part=part, says=says, why=why, needs_specimen=needs, check=check)
        CLAUSES[made.id] = made
        return check

    return add


def demand(condition: object, found: str) -> None:
    """Raise what was found unless the condition holds."""
    if not condition:
        raise Broken(found)
