"""What plugins hand over is checked here, once, and its callables get the wall of `calling` around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from .._scheduling.faults import broken, calling
from ..contract.hookspecs import Claim, Fit, Loaded, MemoryEstimate, ModelState
from ..errors import MLXEngineError

if TYPE_CHECKING:
    from ..contract.plugins import PluginRecord
    from ..contract.requests import Request

T = TypeVar("T")
Test = Callable[[Any], bool]


def _is(*wanted: type) -> Test:
    return lambda value: isinstance(value, wanted)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count_or_none(value: Any) -> bool:
    return value is None or _count(value)


def _texts(value: Any) -> bool:
    return all(isinstance(item, str) for item in value)


def _callable_or_none(value: Any) -> bool:
    return value is None or callable(value)


_CLAIM: Mapping[str, tuple[str, Test]] = {
    "kind": ("a name", lambda value: isinstance(value, str) and value != ""),
    "fit": ("a Fit", _is(Fit)),
    "files": ("patterns", _texts),
    "capabilities": ("names", _texts),
    "estimate": ("a function or None", _callable_or_none),
    "uses_mlx": ("a bool", _is(bool)),
    "problem": ("one of mlxengine's errors or None", _is(MLXEngineError, type(None))),
    "reason": ("a text", _is(str)),
    "honours": ("names", _texts),
}
_BYTES = ("bytes from 0", _count)
_ESTIMATE: Mapping[str, tuple[str, Test]] = {"weights": _BYTES, "cache": _BYTES, "workspace": _BYTES}
_LOADED: Mapping[str, tuple[str, Test]] = {
    "warm": ("an iterable", _is(Iterable)),
    "close": ("a function or None", _callable_or_none),
    "capabilities": ("names", _texts),
    "info": ("a mapping", _is(Mapping)),
    "state": ("a function", callable),
    "trim": ("a function", callable),
    "setup": ("a function", callable),
    "warm_up": ("a function or None", _callable_or_none),
}
_STATE: Mapping[str, tuple[str, Test]] = {
    "caches": _BYTES,
    "requests": _BYTES,
    "degraded": ("a text or None", _is(str, type(None))),
    "shortages": ("a number from 0", _count),
    "rows": ("a number from 0 or None", _count_or_none),
    "kv_used": ("bytes from 0 or None", _count_or_none),
    "kv_total": ("bytes from 0 or None", _count_or_none),
}


def _checked(
    record: PluginRecord, hook: str, value: Any, wanted: type[T], fields: Mapping[str, tuple[str, Test]]
) -> T:
    if not isinstance(value, wanted):
        raise broken(record, hook, f"returned {type(value).__name__}, not a {wanted.__name__}")
    for name, (what, holds) in fields.items():
        found = getattr(value, name)
        if not holds(found):
            raise broken(record, hook, f"returned a {wanted.__name__} whose {name} is {found!r}, not {what}")
    return value


def claim(record: PluginRecord, found: Any) -> Claim | None:
    """What ``claim_model`` returned.

    Raises:
        PluginContractError: it is no claim, or a field of it is not what it must be.
    """
    if found is None:
        return None
    offer = _checked(record, "claim_model", found, Claim, _CLAIM)
    estimate = offer.estimate
    if estimate is None:
        return offer

    def reckon(workload: Any) -> MemoryEstimate:
        with calling(record, "estimate"):
            return _checked(record, "estimate", estimate(workload), MemoryEstimate, _ESTIMATE)

    return evolve(offer, estimate=reckon)


def loaded(record: PluginRecord, found: Any) -> Loaded:
    """What ``load_model`` returned for a model that it claimed.

    Raises:
        PluginContractError: it is no `Loaded`, or a field of it is not what it must be.
    """
    made = _checked(record, "load_model", found, Loaded, _LOADED)

    def state() -> ModelState:
        with calling(record, "state"):
            return _checked(record, "state", made.state(), ModelState, _STATE)

    def trim(most: int) -> None:
        with calling(record, "trim"):
            made.trim(most)

    def close() -> None:
        with calling(record, "close"):
            if made.close is not None:
                made.close()

    def setup() -> tuple[Request, ...]:
        from ..contract.requests import Request

        return tuple(listed(record, "setup", made.setup, Request))

    return evolve(made, state=state, trim=trim, close=close, setup=setup)


def listed(
    record: PluginRecord, hook: str, function: Callable[[], Sequence[T] | None], wanted: type[T]
) -> list[T]:
    """What a hook lists, read to its end.

    Raises:
        PluginContractError: one of the items is not what it must be.
        PluginCrashedError: it raised.
    """
    with calling(record, hook):
        items = list(function() or ())
    wrong = next((item for item in items if not isinstance(item, wanted)), None)
    if wrong is not None:
        raise broken(record, hook, f"lists a {type(wrong).__name__}, not a {wanted.__name__}")
    return items


__all__ = ["claim", "listed", "loaded"]
