"""What the metadata of a plugin's distribution says, before any of its code runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from .._version import __version__
from ..contract.hookspecs import PROJECT


def _requirements(distribution: str) -> Iterator[Requirement]:
    """What a distribution requires here, its extras apart; what cannot be read is left out."""
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


def unmet(distribution: str) -> str | None:
    """The range of this project's versions that a distribution requires, where this one is outside it."""
    for wanted in _requirements(distribution):
        if canonicalize_name(wanted.name) == PROJECT and not wanted.specifier.contains(
            __version__, prereleases=True
        ):
            return f"{PROJECT}{wanted.specifier}"
    return None


def needs(distribution: str, wanted: str) -> bool:
    """Whether a distribution requires another one, itself or through what it requires."""
    seen, waiting = set[str](), [distribution]
    while waiting:
        for requirement in _requirements(waiting.pop()):
            name = canonicalize_name(requirement.name)
            if name == wanted:
                return True
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return False


__all__ = ["needs", "unmet"]
