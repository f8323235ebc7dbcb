"""Which handle a kind of model gets. A kind that core does not know gets the plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..handle import AsyncModelHandle, ModelHandle

TEXT = ("llm", "vlm")
EMBED = ("embed",)
IMAGE = ("diffusion",)


def handle_type(kind: str) -> type[ModelHandle]:
    """The handle's class for a kind."""
    from ..handle import ModelHandle
    from ..text.handle import TextHandle

    if kind in TEXT:
        return TextHandle
    if kind in EMBED:
        from ..vectors.handle import EmbeddingHandle

        return EmbeddingHandle
    if kind in IMAGE:
        from ..pictures.handle import ImageHandle

        return ImageHandle
    return ModelHandle


def async_handle_type(kind: str) -> type[AsyncModelHandle]:
    """The same for asyncio."""
    from ..handle import AsyncModelHandle
    from ..text.handle import AsyncTextHandle

    if kind in TEXT:
        return AsyncTextHandle
    if kind in EMBED:
        from ..vectors.handle import AsyncEmbeddingHandle

        return AsyncEmbeddingHandle
    if kind in IMAGE:
        from ..pictures.handle import AsyncImageHandle

        return AsyncImageHandle
    return AsyncModelHandle
