"""Text-to-image and image-to-image models for MLXEngine."""

from ._version import __version__

__all__ = ["__version__"]
