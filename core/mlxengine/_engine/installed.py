"""What the metadata of a plugin's distribution says, before any of its code runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING

from .._version import __version__
from ..contract.hookspecs import PROJECT

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def _requirements(distribution: str) -> Iterator[Requirement]:
    """What a distribution requires here, its extras apart; what cannot be read is left out."""
    from packaging.requirements import (  # a fifth of what a verb takes to start
        InvalidRequirement,
        Requirement,
    )

    try:
        lines = requires(distribution) or ()
    except PackageNotFoundError:
        return
    for line in lines:
        try:
            found = Requirement(line)
        except InvalidRequirement:  # older tools wrote what pip takes and the standard does not
            continue
        if found.marker is None or found.marker.evaluate({"extra": ""}):
            yield found


def unmet(distribution: str, version: str | None) -> str | None:
    """The range of this project's versions that a distribution requires, where this one is outside it.

    Distributions of the project's own are released together; nothing is read of one of this version.
    """
    if distribution.startswith(f"{PROJECT}-") and version == __version__:
        return None
    for wanted in _requirements(distribution):
        if _name(wanted) == PROJECT and not wanted.specifier.contains(__version__, prereleases=True):
            return f"{PROJECT}{wanted.specifier}"
    return None


def _name(requirement: Requirement) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(requirement.name)


def needs(distribution: str, wanted: str) -> bool:
    """Whether a distribution requires another one, itself or through what it requires."""
    seen, waiting = set[str](), [distribution]
    while waiting:
        for requirement in _requirements(waiting.pop()):
            name = _name(requirement)
            if name == wanted:
                return True
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return False


__all__ = ["needs", "unmet"]
