"""TAESD: the decoder of a small autoencoder that shows nearly what the large one would.

Source: github.com/madebyollin/taesd. Files are those of diffusers' ``AutoencoderTiny``, or the author's own
``taesd_decoder.safetensors``; its geometry is told by its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
from diffuse_mlx.stable_diffusion.unet import upsample_nearest
from mlxengine.errors import IncompatibleWeightsError

from .weights import read_tensors

_LAYER = re.compile(r"(?:decoder\.layers\.)?(\d+)\.(.+)")
_USUAL = "diffusion_pytorch_model.safetensors"
_BLOCK = ("conv.0", "conv.2", "conv.4")


class SmallDecoder:
    """The decoder, in float32. Where a number is missing among the layers, the size is doubled."""

    def __init__(self, layers: Mapping[int, Mapping[str, mx.array]]) -> None:
        self._layers = layers
        self._first, self._last = min(layers), max(layers)

    def parameters(self) -> Mapping[int, Mapping[str, mx.array]]:
        """All tensors, to be evaluated."""
        return self._layers

    def __call__(self, latents: mx.array) -> mx.array:
        """Pictures (batch, height, width, 3), about -1 to 1, of latents (batch, height, width, channels)."""
        x = mx.tanh(latents / 3) * 3
        for number in range(self._first, self._last + 1):
            layer = self._layers.get(number)
            if layer is None:
                x = mx.maximum(x, 0) if number == self._first + 1 else upsample_nearest(x)
            elif "weight" in layer:
                x = _convolved(x, layer, "")
            else:
                y = x
                for name in _BLOCK[:-1]:
                    y = mx.maximum(_convolved(y, layer, f"{name}."), 0)
                x = mx.maximum(_convolved(y, layer, f"{_BLOCK[-1]}.") + x, 0)
        return x * 2 - 1


def _convolved(x: mx.array, layer: Mapping[str, mx.array], name: str) -> mx.array:
    y = mx.conv2d(x, layer[f"{name}weight"], padding=1)
    return y + layer[f"{name}bias"] if f"{name}bias" in layer else y


def read_small_decoder(path: Path, channels: int, scale: int) -> SmallDecoder:
    """The decoder in a file, or in the file of a folder.

    Args:
        channels: of the model's latents.
        scale: pixels per latent along a side.

    Raises:
        IncompatibleWeightsError: it is no such file, or one for other latents.
    """
    file = path / _USUAL if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise IncompatibleWeightsError(f"{path} is no small autoencoder: a .safetensors file is.")
    layers: dict[int, dict[str, mx.array]] = {}
    for name, value in read_tensors([file]).items():
        if match := _LAYER.fullmatch(name):
            kept = mx.contiguous(value.transpose(0, 2, 3, 1)) if value.ndim == 4 else value
            layers.setdefault(int(match[1]), {})[match[2]] = kept.astype(mx.float32)
    try:
        first, last = layers[min(layers)]["weight"], layers[max(layers)]["weight"]
        doubled = 2 ** sum(number not in layers for number in range(min(layers) + 2, max(layers)))
        blocks = [layer for layer in layers.values() if "weight" not in layer]
        known = all(f"{name}.weight" in layer for layer in blocks for name in _BLOCK)
        fits = known and (first.shape[-1], last.shape[0], doubled) == (channels, 3, scale)
    except (KeyError, ValueError) as error:
        raise IncompatibleWeightsError(f"{file.name} is no decoder of a small autoencoder.") from error
    if not fits:
        raise IncompatibleWeightsError(
            f"{file.name} is no small autoencoder for latents of {channels} channels and {scale} pixels.",
            hint="Stable Diffusion 1 and 2 take madebyollin/taesd, XL takes madebyollin/taesdxl.",
        )
    return SmallDecoder(layers)


__all__ = ["SmallDecoder", "read_small_decoder"]
