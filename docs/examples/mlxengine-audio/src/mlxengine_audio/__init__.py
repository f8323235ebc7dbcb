"""Voice activity detection as a model kind of MLXEngine."""

from .types import ListenRequest, Speech, Voice

__all__ = ["ListenRequest", "Speech", "Voice"]
