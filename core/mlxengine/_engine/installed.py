"""What the metadata of a plugin's distribution says, before any of its code runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from itertools import zip_longest

from .._version import __version__
from ..contract.hookspecs import PROJECT

_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_CLAUSE = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*v?([\d.]+)(.*)")
_HOLDS: dict[str, Callable[[int], bool]] = {
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<=": lambda order: order <= 0,
    ">=": lambda order: order >= 0,
    "<": lambda order: order < 0,
    ">": lambda order: order > 0,
}


def _requirements(distribution: str) -> Iterator[tuple[str, str]]:
    """Names and version ranges that a distribution requires, its extras apart."""
    try:
        lines = requires(distribution) or ()
    except PackageNotFoundError:
        return
    for line in lines:
        found = _REQUIREMENT.match(line)
        if found and "extra" not in (found[3] or ""):
            yield re.sub(r"[-_.]+", "-", found[1]).lower(), found[2].strip()


def unmet(distribution: str) -> str | None:
    """The range of this project's versions that a distribution requires, where this one is outside it."""
    for name, wanted in _requirements(distribution):
        if name == PROJECT and not all(
            _meets(__version__, part) for part in wanted.split(",") if part.strip()
        ):
            return f"{PROJECT}{wanted}"
    return None


def _meets(version: str, part: str) -> bool:
    found = _CLAUSE.match(part)
    if found is None:
        return True  # not a range that pip would write: nothing is known against it
    how, wanted, rest = found[1], _numbers(found[2]), found[3].strip()
    have = _numbers(version)
    if how == "~=":
        return _order(have, wanted) >= 0 and have[: len(wanted) - 1] == wanted[:-1]
    if rest.startswith("*"):
        have = have[: len(wanted)]
    return _HOLDS[how](_order(have, wanted))


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _order(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    for one, other in zip_longest(left, right, fillvalue=0):
        if one != other:
            return 1 if one > other else -1
    return 0


def needs(distribution: str, wanted: str) -> bool:
    """Whether a distribution requires another one, itself or through what it requires."""
    seen, waiting = set[str](), [distribution]
    while waiting:
        for name, _ in _requirements(waiting.pop()):
            if name == wanted:
                return True
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return False


__all__ = ["needs", "unmet"]
