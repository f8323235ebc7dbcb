"""Which handle a kind of model gets. A kind that core does not know gets the plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import AsyncModelHandle, ModelHandle

TEXT = ("llm", "vlm")
EMBED = ("embed",)
IMAGE = ("diffusion",)


def handle_type(kind: str) -> type[ModelHandle]:
    """The handle's class for a kind."""
    from .model import ModelHandle, TextHandle

    if kind in TEXT:
        return TextHandle
    if kind in EMBED:
        from .embeddings import EmbeddingHandle

        return EmbeddingHandle
    if kind in IMAGE:
        from .images import ImageHandle

        return ImageHandle
    return ModelHandle


def async_handle_type(kind: str) -> type[AsyncModelHandle]:
    """The same for asyncio."""
    from .model import AsyncModelHandle, AsyncTextHandle

    if kind in TEXT:
        return AsyncTextHandle
    if kind in EMBED:
        from .embeddings import AsyncEmbeddingHandle

        return AsyncEmbeddingHandle
    if kind in IMAGE:
        from .images import AsyncImageHandle

        return AsyncImageHandle
    return AsyncModelHandle
