"""Voice activity detection as a model kind of MLXEngine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .types import ListenRequest, Speech, Voice

__all__ = ["ListenRequest", "Speech", "Voice"]


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package; what a request is made of can wait for the first one.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import types

    return getattr(types, name)
