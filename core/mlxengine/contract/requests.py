"""What can be asked of a model. A plugin for a new kind subclasses `Request`."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Request:
    """Base of every request.

    Args:
        priority: a higher one is admitted first where a plugin has to choose; 0 is normal.
        features: feature flags for this call only, as ``(name, value)`` pairs.
    """

    priority: int = 0
    features: tuple[tuple[str, object], ...] = ()


__all__ = ["Request"]
