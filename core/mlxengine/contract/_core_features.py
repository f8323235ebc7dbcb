"""The feature flags of the engine itself."""

from __future__ import annotations

from typing import Any

from .features import Feature, Stage

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

FEATURES: tuple[Feature[Any], ...] = (MOCK, DEGRADE)

__all__ = ["DEGRADE", "FEATURES", "MOCK"]
