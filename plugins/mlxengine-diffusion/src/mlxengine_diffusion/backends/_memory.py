"""What making a picture takes, stage by stage, told by configurations and headers alone. Pure.

Working space is counted in features: numbers of a layer at the finest resolution. How many of them live at
once was measured with random weights at the models' real shapes (``benchmarks/pictures/memory.py``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen
from mlxengine import ModelCard
from mlxengine.contract.configuration import TensorInfo

from ..features import BACKEND_DTYPE, KEEP_LOADED, VAE_TILING

_ENCODING = re.compile(r"(^|\.)(encoder|quant_conv)\.")
_GROUP = 32  # numbers that share a scale where layers are quantized
_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
_DECODER_COPIES = 3.1
_UNET_COPIES = 17
_BAND = 12 << 20  # what a convolution on a CPU unfolds at a time
AHEAD = 2
"""Blocks of a network that may be launched on a GPU and not be done, beside the one that is put together."""
# What the largest block makes, FLUX.2's single one: all of it stays until it is done. Of a norm and what it
# is modulated to, 2; projected, 9; queries and keys laid out, normed and turned, 6; attention's answer, 1;
# the feed-forward layer's, 3; both side by side, 4; projected and added, 2; one that the next block is given.
_BLOCK = 28
# Of a decoder that waits for each residual block: what the widest is given, and seven of half the width.
_RESIDUAL = 4.5
_ENCODER_COPIES = 12


@frozen(kw_only=True)
class Shape:
    """What is made, and where.

    Args:
        width, height: in pixels.
        rows: what the denoiser is shown at once: pictures, and as many for the negative prompt.
        on_cpu: whether everything is in float32, and attention's scores are written out.
        tiled: whether the autoencoder works on tiles.
    """

    width: int
    height: int
    rows: int = 2
    on_cpu: bool = False
    tiled: bool = False


@frozen(kw_only=True)
class Stage:
    """One part at its work: bytes of its weights, and of its working space.

    ``unread`` are bytes of the weights that drawing does not touch: they are there where parts stay, and not
    where a part is read for its stage alone.
    """

    part: str
    weights: int
    workspace: int
    unread: int = 0


Stages = Callable[[Shape], Sequence[Stage]]


def peak(stages: Sequence[Stage], *, staged: bool) -> tuple[int, int]:
    """Bytes of weights that stay, and of what a picture takes beside them at its largest stage.

    Args:
        staged: whether each part is freed after its stage.
    """
    if staged:
        return 0, max(stage.weights - stage.unread + stage.workspace for stage in stages)
    return sum(stage.weights for stage in stages), max(stage.workspace for stage in stages)


def flag(card: ModelCard, feature: Any) -> Any:
    """The value that the card's configuration has for a flag, else its default."""
    return feature.coerce(dict(card.configuration.features).get(feature.name, feature.default))


def tiles_asked(card: ModelCard) -> bool:
    return bool(flag(card, VAE_TILING) == "on")


def stages_asked(card: ModelCard) -> bool:
    return not flag(card, KEEP_LOADED)


def width_of(card: ModelCard, shape: Shape, half: str = "float16") -> int:
    """Bytes of a number of the denoiser and the text encoders."""
    asked = str(flag(card, BACKEND_DTYPE))
    return _WIDTHS[("float32" if shape.on_cpu else half) if asked == "auto" else asked]


def count(tensors: Iterable[TensorInfo], unread: str | None = None) -> int:
    """How many numbers tensors hold, without those whose names match ``unread``."""
    return sum(
        math.prod(item.shape) for item in tensors if unread is None or not re.search(unread, item.name)
    )


def encoding(tensors: Iterable[TensorInfo]) -> int:
    """How many numbers are those of an autoencoder's encoder, which drawing from text does not use."""
    return sum(math.prod(item.shape) for item in tensors if _ENCODING.search(item.name))


def quantized(tensors: Iterable[TensorInfo], width: int, bits: int) -> int:
    """Bytes of a denoiser whose linear layers are packed."""
    found = 0
    for item in tensors:
        numbers = math.prod(item.shape)
        flat = len(item.shape) == 2 or (len(item.shape) == 4 and item.shape[2:] == (1, 1))
        if bits and flat and item.shape[1] % _GROUP == 0:
            found += numbers * bits // 8 + 2 * width * numbers // _GROUP
        else:
            found += width * numbers
    return found


def autoencoder(
    config: Mapping[str, Any], shape: Shape, tile: int, width: int = 4, *, waits: bool = False
) -> int:
    """Working space of decoding (encoding takes less).

    Args:
        waits: whether a GPU is waited for after each residual block, and not more often.
    """
    wide, high = (min(side, tile) if shape.tiled else side for side in (shape.width, shape.height))
    narrow = config.get("base_dim")
    widest = 2 * narrow if narrow else max(config.get("block_out_channels", (128, 256))[:2])
    # Tiles that wait to be put together are three numbers a pixel.
    waiting = 2 * 12 * shape.width * shape.height if shape.tiled else 0
    copies = _RESIDUAL if narrow or (waits and not shape.on_cpu) else _DECODER_COPIES
    features = int(copies * wide * high * widest * width)
    return max(features, _BAND if shape.on_cpu else 0) + waiting


def unet(config: Mapping[str, Any], shape: Shape, places: int, width: int) -> int:
    """Working space of Stable Diffusion's UNet."""
    finest = next(iter(config.get("block_out_channels", (320,))))
    return int(_UNET_COPIES * shape.rows * places * finest * width) + (_BAND // 2 if shape.on_cpu else 0)


def transformer(config: Mapping[str, Any], tokens: int, shape: Shape, width: int, copies: int) -> int:
    """Working space of a transformer over all places of a picture and its prompt.

    On a CPU attention's scores are written out, before and after the softmax.

    Args:
        copies: how many features live at once on a CPU.
    """
    heads: int = config.get("num_attention_heads") or config.get("n_heads") or 1
    hidden: int = config.get("dim") or heads * config.get("attention_head_dim", 1)
    if not shape.on_cpu:
        return (AHEAD + 1) * _BLOCK * tokens * hidden * width
    return copies * tokens * hidden * width + 2 * heads * tokens * tokens * 4


def encoder(config: Mapping[str, Any], tokens: int, shape: Shape, width: int) -> int:
    """Working space of a text encoder that reads ``tokens`` at once."""
    text = {**config, **(config.get("text_config") or {})}
    hidden = text.get("hidden_size") or text.get("d_model") or 1024
    heads = text.get("num_attention_heads") or text.get("num_heads") or 16
    inner = text.get("intermediate_size") or text.get("d_ff") or 4 * hidden
    layer = tokens * (_ENCODER_COPIES * hidden + 3 * inner) * width
    return layer + 2 * heads * tokens * tokens * 4 if shape.on_cpu else (AHEAD + 1) * layer


__all__ = [
    "AHEAD",
    "Shape",
    "Stage",
    "Stages",
    "autoencoder",
    "count",
    "encoder",
    "encoding",
    "flag",
    "peak",
    "quantized",
    "stages_asked",
    "tiles_asked",
    "transformer",
    "unet",
    "width_of",
]
