"""What a model that sees has instead of an encoder of texts: its picture processor and its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define
from mlxengine import ImagePart
from mlxengine.errors import IncompatibleWeightsError, UnsupportedInputError
from mlxengine.toolkit.pictures import opened
from PIL import Image

from ._sight import Sight
from ._tokenize import Ids, Tokens

Array = Any
_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


@define(eq=False, kw_only=True)
class Eye:
    """Pictures to pixels, and both pictures and texts to vectors of one space.

    Args:
        processor: transformers' picture processor, of its Pillow kind.
        ids: the token ids of a picture; those of its patches, which come first, stand for nothing.
        network: `Towers`, or `ColPali` of a model that makes one vector a token.
        filler: the token that fills up a row of texts.
        length: how long every text is made (SigLIP); ``None`` for as long as the longest of a batch.
        left: whether texts are filled up on their left.
        hides: whether what fills up is hidden from attention.
    """

    processor: Any
    ids: Ids
    network: Any
    filler: int
    length: int | None = None
    left: bool = False
    hides: bool = False

    def look(self, items: Sequence[tuple[int, ImagePart]]) -> list[Tokens]:
        """Pictures, each with its place in the request, as `vectors` takes them.

        Raises:
            UnsupportedInputError: one cannot be read; the message says which.
        """
        return [self._look(place, part) for place, part in items]

    def _look(self, place: int, part: ImagePart) -> Tokens:
        try:
            found = opened(part.source)
        except UnsupportedInputError as error:
            raise UnsupportedInputError(f"texts[{place}]: {error.message}", hint=error.hint) from error
        pixels = self.processor.preprocess(found, return_tensors="np")["pixel_values"][0]
        return Tokens(
            ids=self.ids,
            pixels=np.ascontiguousarray(pixels.transpose(1, 2, 0), dtype=np.float32),
        )

    def vectors(self, batch: Sequence[Tokens]) -> Array:
        """One vector a text or picture, (rows, size); lazy. A batch holds one of the two alone."""
        pixels = _pixels(batch)
        if pixels is not None:
            return self.network.pictures(pixels)
        ids, real = self._padded(batch)
        return self.network.texts(ids, real if self.hides else None)

    def tokens(self, batch: Sequence[Tokens]) -> Array:
        """One vector a token or patch, (rows, longest, size); lazy. A batch is as for `vectors`."""
        return self.network.tokens(*self._padded(batch), _pixels(batch))

    def _padded(self, batch: Sequence[Tokens]) -> tuple[Array, Array]:
        """Token ids (rows, longest), and where they are."""
        longest = self.length or max(1, *(len(item.ids) for item in batch))
        ids: Any = np.full((len(batch), longest), self.filler, dtype=np.int32)
        real: Any = np.zeros(ids.shape, dtype=np.bool_)
        for row, tokens in enumerate(batch):
            start = longest - len(tokens.ids) if self.left else 0
            places = slice(start, start + len(tokens.ids))
            ids[row, places], real[row, places] = tokens.ids, True
        return mx.array(ids), mx.array(real)


def _pixels(batch: Sequence[Tokens]) -> Array | None:
    """(rows, height, width, 3) of a batch of pictures, ``None`` of one of texts."""
    if batch[0].pixels is None:
        return None
    return mx.array(np.stack([item.pixels for item in batch]))


def build_processor(sight: Sight) -> Any:
    """Transformers' picture processor with a repository's settings, tried on one picture.

    Raises:
        IncompatibleWeightsError: it makes nothing that the model takes.
    """
    if sight.processing == "clip":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    else:
        from transformers.models.siglip.image_processing_pil_siglip import (
            SiglipImageProcessorPil as Processor,
        )
    built: Any = Processor(**{name: sight.processor[name] for name in _SETTINGS if name in sight.processor})
    side = sight.vision["image_size"]
    with np.errstate(all="ignore"):
        (made,) = built.preprocess(Image.new("RGB", (side, side)), return_tensors="np")["pixel_values"]
    if made.shape != (3, side, side) or not np.isfinite(made).all():
        raise IncompatibleWeightsError(
            f"preprocessor_config.json makes no pictures of {side} × {side} finite numbers.",
            hint="The repository is damaged: compare the file with the original's.",
        )
    return built


__all__ = ["Eye", "build_processor"]
