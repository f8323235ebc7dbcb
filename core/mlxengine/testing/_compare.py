"""Whether two runs said the same, to within the last bits of a float."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import attrs

from ..contract.events import Array, Event, Finished, Metrics, Progress, Usage
from ..text.outputs import ReasoningDelta, TextDelta

_FORMATS = {"float16": "e", "float32": "f", "float64": "d"}


def answer(events: Sequence[Event]) -> list[Any]:
    """What the run said, without its timing: deltas joined, progress left out, metrics blanked.

    How many tokens a cache saved depends on what was asked before; the answer must not.
    """
    said: list[Any] = []
    for kind in (ReasoningDelta, TextDelta):
        indices = sorted({event.index for event in events if isinstance(event, kind)})
        for index in indices:
            own = [event for event in events if isinstance(event, kind) and event.index == index]
            tokens = tuple(token for event in own for token in event.token_ids)
            said.append((kind.__name__, index, "".join(event.text for event in own), tokens))
    for event in events:
        if isinstance(event, Finished):
            usage = {unit: n for unit, n in event.usage.counts.items() if unit != "cached_tokens"}
            said += [attrs.evolve(event, metrics=Metrics(), usage=Usage()), usage]
        elif not isinstance(event, TextDelta | ReasoningDelta | Progress):
            said.append(event)
    return said


def difference(left: Any, right: Any, tolerance: float, where: str = "the answer") -> str | None:
    """The first difference between two answers, in words; ``None`` if they are equal."""
    if type(left) is not type(right):
        return f"{where}: {type(left).__name__} against {type(right).__name__}"
    if isinstance(left, float):
        same = left == right or math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
        return None if same else f"{where}: {left} against {right}"
    if isinstance(left, Array):
        return _array_difference(left, right, tolerance, where)
    if isinstance(left, Mapping):
        if left.keys() != right.keys():
            return f"{where}: keys {sorted(map(str, left))} against {sorted(map(str, right))}"
        pairs = [(left[key], right[key], f"{where}[{key!r}]") for key in left]
    elif isinstance(left, list | tuple):
        if len(left) != len(right):
            return f"{where}: {len(left)} items against {len(right)}"
        pairs = [
            (one, other, f"{where}[{at}]") for at, (one, other) in enumerate(zip(left, right, strict=True))
        ]
    elif attrs.has(type(left)):
        fields = [item.name for item in attrs.fields(type(left))]
        pairs = [(getattr(left, name), getattr(right, name), f"{where}.{name}") for name in fields]
    else:
        return None if left == right else f"{where}: {left!r} against {right!r}"
    return next((found for one in pairs if (found := difference(one[0], one[1], tolerance, one[2]))), None)


def _array_difference(left: Array, right: Array, tolerance: float, where: str) -> str | None:
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return f"{where}: {left.dtype} {left.shape} against {right.dtype} {right.shape}"
    letter = _FORMATS.get(left.dtype)
    if letter is None:
        wrong = sum(one != other for one, other in zip(bytes(left.data), bytes(right.data), strict=True))
        return f"{where}: {wrong} bytes differ" if wrong else None
    count = len(left.data) // struct.calcsize(letter)
    one, other = (struct.unpack(f"{count}{letter}", bytes(item.data)) for item in (left, right))
    gaps = [abs(a - b) if a == a and b == b else math.inf for a, b in zip(one, other, strict=True)]
    worst = max(gaps, default=0.0)
    return (
        f"{where}: numbers differ by up to {worst:.3g} (tolerance {tolerance:g})"
        if worst > tolerance
        else None
    )


def foreign_values(value: Any, where: str) -> Iterator[str]:
    """Paths of what is neither plain data, nor host memory, nor a frozen value of these."""
    if value is None or isinstance(value, str | bytes | int | float | bool | Enum):
        return
    if isinstance(value, memoryview):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from foreign_values(item, f"{where}[{key!r}]")
    elif isinstance(value, tuple | frozenset):
        for at, item in enumerate(value):
            yield from foreign_values(item, f"{where}[{at}]")
    elif attrs.has(type(value)):
        for item in attrs.fields(type(value)):
            yield from foreign_values(getattr(value, item.name), f"{where}.{item.name}")
    else:
        kind = type(value)
        yield f"{where} is a {kind.__module__}.{kind.__qualname__}"
