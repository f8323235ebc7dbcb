"""What a repository's configurations say, read from a card: pure, and without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attrs import frozen
from mlxengine import ModelCard

from .wan.shape import WanShape, documents_of


@frozen(kw_only=True)
class Layout:
    """The sizes that memory depends on.

    Args:
        shape: what can be asked of the model.
        numbers: how many each part holds, by its folder.
        hidden, inner, heads, layers: of the denoiser.
        decoded: channels of the autoencoder's decoder at its finest resolution.
        finest: pixels along a side that one of its places stands for there.
        text: width, inner width and heads of the text encoder.
    """

    shape: WanShape
    numbers: Mapping[str, int]
    hidden: int
    inner: int
    heads: int
    layers: int
    decoded: int
    finest: int
    text: tuple[int, int, int]

    def tokens(self, size: tuple[int, int], frames: int) -> int:
        """How many the denoiser works on; sizes that the model does not make are rounded up."""
        high, wide = (math.ceil(side / self.shape.size_step) for side in size)
        return self.latent_frames(frames) * high * wide

    def latent_frames(self, frames: int) -> int:
        """Latent frames of so many frames."""
        return math.ceil((frames - 1) / self.shape.time_stride) + 1


def pipeline(card: ModelCard) -> str | None:
    """The class that a repository of diffusers' names; ``None`` for what is no such repository."""
    index = card.documents.get("model_index.json")
    return str(index.get("_class_name")) if isinstance(index, Mapping) else None


def layout(card: ModelCard) -> Layout:
    """Read them.

    Raises:
        UnsupportedArchitectureError, IncompatibleWeightsError, CorruptFileError, RemoteCodeRefusedError: the
            model is none that is served.
        KeyError, TypeError, ValueError: a configuration makes no sense.
    """
    found = documents_of(card.id, card.documents.get)
    denoiser, vae, text = found.transformer, found.vae, found.text_encoder
    heads = int(denoiser["num_attention_heads"])
    return Layout(
        shape=found.shape,
        numbers={part: _count(card, part) for part in found.shape.parts},
        hidden=heads * int(denoiser["attention_head_dim"]),
        inner=int(denoiser["ffn_dim"]),
        heads=heads,
        layers=int(denoiser["num_layers"]),
        decoded=int(vae["decoder_base_dim"]),
        finest=int(vae.get("patch_size") or 1),
        text=(int(text["d_model"]), int(text["d_ff"]), int(text["num_heads"])),
    )


def _count(card: ModelCard, part: str) -> int:
    return sum(math.prod(item.shape) for item in card.tensors if item.file.startswith(f"{part}/"))


__all__ = ["Layout", "layout", "pipeline"]
