"""Voice activity detection as a model kind of MLXEngine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .handle import AsyncSpeechHandle, SpeechHandle
    from .types import Heard, ListenRequest, Speech, Voice

__all__ = ["AsyncSpeechHandle", "Heard", "ListenRequest", "Speech", "SpeechHandle", "Voice"]


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package; what a request is made of can wait for the first one.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import handle, types

    return getattr(handle if name.endswith("Handle") else types, name)
