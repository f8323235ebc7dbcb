"""Finished pictures made larger by ESRGAN's network (Wang et al. 2018, arXiv:1809.00219), tile by tile.

Files are ``.safetensors`` with the names of Real-ESRGAN or of the first ESRGAN. Width, depth and factor
(4; 2 or 1 where the first layer takes a picture whose pixels were folded together) are told by the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from diffuse_mlx.stable_diffusion.unet import upsample_nearest
from mlxengine.errors import IncompatibleWeightsError

from .backends._work import Pixels
from .sd.blocks import with_our_ops
from .sd.weights import read_tensors

_TILE, _MARGIN = 192, 16
_SHARE = 0.2
_ENDS = ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
_FIRST_ESRGAN = (
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
    (r"^model\.3\.", "conv_up1."),
    (r"^model\.6\.", "conv_up2."),
    (r"^model\.8\.", "conv_hr."),
    (r"^model\.10\.", "conv_last."),
)


class Upscaler(nn.Module):  # type: ignore[misc]
    """The network: residual blocks of densely connected convolutions, then twice the size, and again.

    Attributes:
        scale: how many times as wide and high its pictures are.
    """

    def __init__(self, layers: dict[str, nn.Conv2d]) -> None:
        super().__init__()
        self.layers = layers
        self._fold = round((layers["conv_first"].weight.shape[-1] / 3) ** 0.5)
        self.scale = 4 // self._fold
        self._blocks = 1 + max(int(name.split(".")[1]) for name in layers if name.startswith("body."))

    def steps(self, x: mx.array) -> Generator[None, None, mx.array]:
        """The picture (1, height, width, 3) from 0 to 1, ``scale`` times as large; a turn for each block."""
        x = first = self.layers["conv_first"](_folded(x, self._fold))
        for block in range(self._blocks):
            y = x
            for part in (1, 2, 3):
                y = y + _SHARE * self._dense(y, f"body.{block}.rdb{part}")
            x = x + _SHARE * y
            mx.eval(x)
            yield None
        x = first + self.layers["conv_body"](x)
        for name in ("conv_up1", "conv_up2"):
            x = _leaky(self.layers[name](upsample_nearest(x)))
            mx.eval(x)
            yield None
        made: mx.array = self.layers["conv_last"](_leaky(self.layers["conv_hr"](x)))
        mx.eval(made)
        return made

    def _dense(self, x: mx.array, name: str) -> mx.array:
        seen = [x]
        for number in (1, 2, 3, 4):
            seen.append(_leaky(self.layers[f"{name}.conv{number}"](mx.concatenate(seen, axis=-1))))
        found: mx.array = self.layers[f"{name}.conv5"](mx.concatenate(seen, axis=-1))
        return found


def _leaky(x: mx.array) -> mx.array:
    return mx.maximum(x, 0.2 * x)


def _folded(x: mx.array, side: int) -> mx.array:
    """Squares of ``side`` by ``side`` pixels as one, their channels one after the other (colours first)."""
    batch, height, width, channels = x.shape
    apart = x.reshape(batch, height // side, side, width // side, side, channels)
    return apart.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // side, width // side, -1)


def read_upscaler(path: Path) -> Upscaler:
    """The network in a file, or in the one file of a folder; nothing is evaluated yet.

    Raises:
        IncompatibleWeightsError: it is no such file.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or files[0].suffix != ".safetensors" or not files[0].is_file():
        raise IncompatibleWeightsError(
            f"{path} is no upscaler: one .safetensors file is.",
            hint="Of several files, name one.",
        )
    layers: dict[str, nn.Conv2d] = {}
    for written, value in read_tensors(files).items():
        name = written.removeprefix("params_ema.").removeprefix("params.")
        for pattern, ours in _FIRST_ESRGAN:
            name = re.sub(pattern, ours, name)
        layer, _, end = name.rpartition(".")
        own = layers.setdefault(layer, nn.Conv2d(1, 1, 3, padding=1))
        own[end] = mx.contiguous(value.transpose(0, 2, 3, 1)) if value.ndim == 4 else value
        own[end] = own[end].astype(mx.float32)
    blocks = {name.split(".")[1] for name in layers if re.fullmatch(r"body\.\d+\.rdb[123]\.conv[1-5]", name)}
    wanted = {f"body.{b}.rdb{r}.conv{c}" for b in blocks for r in (1, 2, 3) for c in (1, 2, 3, 4, 5)}
    if (
        not blocks
        or set(layers) != wanted | set(_ENDS)
        or layers["conv_first"].weight.shape[-1] not in (3, 12, 48)
    ):
        raise IncompatibleWeightsError(
            f"{files[0].name} is no ESRGAN network of a kind that is known.",
            hint="RRDBNet is read: RealESRGAN_x4plus, RealESRGAN_x2plus, 4x-UltraSharp …",
        )
    made = Upscaler(layers)
    with_our_ops(made)
    return made


def enlarged(network: Upscaler, pixels: Pixels) -> Generator[None, None, Pixels]:
    """The picture (height, width, 3), made larger in tiles that know a margin of their neighbours."""
    height, width, _ = pixels.shape
    scale, fold = network.scale, 4 // network.scale
    # Sides that cannot be folded are mirrored up to the next that can.
    padded = np.pad(pixels, ((0, -height % fold), (0, -width % fold), (0, 0)), mode="symmetric")
    made = np.empty((padded.shape[0] * scale, padded.shape[1] * scale, 3), np.uint8)
    for top in range(0, padded.shape[0], _TILE):
        for left in range(0, padded.shape[1], _TILE):
            above, before = min(top, _MARGIN), min(left, _MARGIN)
            seen = padded[top - above : top + _TILE + _MARGIN, left - before : left + _TILE + _MARGIN]
            output = yield from network.steps(mx.array(seen)[None].astype(mx.float32) / 255)
            tile = np.array(mx.round(mx.clip(output[0], 0, 1) * 255).astype(mx.uint8))
            tile = tile[above * scale :, before * scale :][: _TILE * scale, : _TILE * scale]
            made[top * scale : top * scale + tile.shape[0], left * scale : left * scale + tile.shape[1]] = (
                tile
            )
    found: Pixels = np.ascontiguousarray(made[: height * scale, : width * scale])
    return found


__all__ = ["Upscaler", "enlarged", "read_upscaler"]
