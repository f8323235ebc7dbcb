"""ControlNets: copies of a UNet's way down that are shown a picture, and say what it adds to the features.

Source: Zhang et al. 2023 (arXiv:2302.05543), in the form of diffusers' ``ControlNetModel``. Edges, depths,
poses and tiles are all the same network with other weights: the picture has to be what it was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlxengine.errors import IncompatibleWeightsError, ModelNotFoundError, UnsupportedArchitectureError

from . import ops
from .blocks import with_our_ops
from .config import UNetSettings, control_problems, read_config
from .unet import Encoder, UNet
from .weights import fill, read_tensors

_WIDTHS = (16, 32, 96, 256)


class _Picture(nn.Module):  # type: ignore[misc]
    """The picture as features of the size of latents: (1, height, width, 3), 0 to 1, in."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = []
        for inner, outer in pairwise(widths):
            self.blocks += [
                nn.Conv2d(inner, inner, 3, padding=1),
                nn.Conv2d(inner, outer, 3, stride=2, padding=1),
            ]
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in (self.conv_in, *self.blocks):
            x = ops.silu(layer(x))
        found: mx.array = self.conv_out(x)
        return found


class ControlNet(Encoder):
    """The network that says what a picture adds to a UNet's features."""

    def __init__(self, shape: UNetSettings, widths: Sequence[int]) -> None:
        super().__init__(shape)
        self.controlnet_cond_embedding = _Picture(widths, shape.channels[0])
        self.controlnet_down_blocks = [nn.Conv2d(width, width, 1) for width in self.skip_widths]
        self.controlnet_mid_block = nn.Conv2d(shape.channels[-1], shape.channels[-1], 1)
        self.scale = 2 ** (len(widths) - 1)

    def __call__(
        self,
        x: mx.array,
        timed: mx.array,
        told: Iterable[tuple[mx.array, mx.array]],
        picture: mx.array,
    ) -> list[mx.array]:
        """What it adds on the way down, and in the middle: as `UNet` takes it.

        Args:
            picture: (1, height, width, 3), 0 to 1; the others are as `encoded` takes them.
        """
        shown = self.controlnet_cond_embedding(picture.astype(x.dtype))
        middle, skips, _ = self.encoded(x, timed, told, shown)
        found = [layer(skip) for layer, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return [*found, self.controlnet_mid_block(middle)]


def load_control(folder: Path, unet: UNet, latent_scale: int, dtype: mx.Dtype) -> ControlNet:
    """The ControlNet of a folder, lazily, for a UNet whose latents stand for ``latent_scale`` pixels a side.

    Raises:
        ModelNotFoundError: the folder holds none.
        UnsupportedArchitectureError: it is another kind of network, or has settings that are not implemented.
        IncompatibleWeightsError: its weights do not fit its configuration, or it was made for another UNet.
    """
    files = sorted(folder.glob("*.safetensors"))
    halves = [file for file in files if ".fp16." in file.name]
    if not files or not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} holds no ControlNet.",
            hint="A folder of one has a config.json and safetensors weights.",
        )
    config = read_config(folder / "config.json")
    if problems := control_problems(config):
        raise UnsupportedArchitectureError(
            f"The ControlNet {folder.name} cannot be used: {'; '.join(problems)}.",
            hint="Those of diffusers' form for Stable Diffusion 1, 2 and XL can.",
        )
    shape = UNetSettings.read({**config, "out_channels": config["in_channels"], "up_block_types": ()})
    made = ControlNet(shape, config.get("conditioning_embedding_out_channels") or _WIDTHS)
    alike = ("channels", "layers", "context", "down_attention", "depth", "size_embedding")
    if any(getattr(shape, name) != getattr(unet.shape, name) for name in alike) or made.scale != latent_scale:
        raise IncompatibleWeightsError(
            f"The ControlNet {folder.name} was made for another model.",
            hint="Stable Diffusion 1, 2 and XL each take their own.",
        )
    with_our_ops(made)
    fill(made, "unet", read_tensors(halves or files), dtype)
    return made


__all__ = ["ControlNet", "load_control"]
