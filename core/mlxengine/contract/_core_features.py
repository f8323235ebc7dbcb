"""The feature flags of the engine itself."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidParameterError
from .features import Feature, Features, Stage

MOCK: Feature[bool] = Feature(
    name="core.mock",
    default=False,
    summary="Serve every model by the mock back end, which marks all that it makes.",
    stage=Stage.EXPERIMENTAL,
)
DEGRADE: Feature[bool] = Feature(
    name="core.degrade",
    default=True,
    summary="Where memory is short, load with less, as the model's kind allows, and try a request that ran "
    "out of it once more when others have made room; off: refuse.",
)
MAX_WAITING: Feature[int | None] = Feature(
    name="core.max_waiting",
    default=None,
    summary="Most requests that may wait for a model; a further one is refused at once. None: no bound.",
)

FEATURES: tuple[Feature[Any], ...] = (MOCK, DEGRADE, MAX_WAITING)


def most_waiting(features: Features) -> int | None:
    """How many requests may wait.

    Raises:
        InvalidParameterError: the flag's value is no such number.
    """
    found: object = features.get(MAX_WAITING)
    if found is not None and (not isinstance(found, int) or isinstance(found, bool) or found < 1):
        raise InvalidParameterError(
            f"{MAX_WAITING.name}={found!r} is no number of requests from 1.",
            hint="A request waits until its first step: none could be served if none might wait.",
        )
    return found


__all__ = ["DEGRADE", "FEATURES", "MAX_WAITING", "MOCK", "most_waiting"]
