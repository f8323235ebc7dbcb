"""The refiner of Stable Diffusion XL: a second UNet that does the last steps on the first one's latents.

It attends to the larger text encoder alone, which both have in common, as they have the autoencoder, and is
told a score of the picture's looks instead of its size. Source: Podell et al. 2023 (arXiv:2307.01952),
section 2.5, in the form of diffusers' "ensemble of expert denoisers".
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlxengine.errors import IncompatibleWeightsError, ModelNotFoundError, UnsupportedArchitectureError
from mlxengine.toolkit.loading import building

from ..backends._networks import quantized
from .config import read_config, unet_problems
from .unet import UNet, build_unet
from .weights import fill, read_tensors

SCORES = (2.5, 6.0)
"""The looks that are wanted without the prompt, and with it: diffusers' own."""
_HINT = "stabilityai/stable-diffusion-xl-refiner-1.0 and models in its form are refiners."


def load_refiner(folder: Path, width: int, latent_channels: int, dtype: mx.Dtype, bits: int) -> UNet:
    """The UNet of a refiner's repository; nothing is evaluated yet.

    Args:
        width: of the larger text encoder's states.
        bits: of its linear layers; 0 leaves them as they are.

    Raises:
        ModelNotFoundError: there is no UNet in the folder.
        UnsupportedArchitectureError: it has settings that are not implemented.
        IncompatibleWeightsError: it is no refiner, or its weights do not fit its configuration.
    """
    place = folder / "unet"
    files = sorted(place.glob("*.safetensors"))
    halves = [file for file in files if ".fp16." in file.name]
    if not files or not (place / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no UNet with safetensors weights.", hint=_HINT)
    config = read_config(place / "config.json")
    if problems := unet_problems(config, latent_channels):
        raise UnsupportedArchitectureError(
            f"The refiner {folder.name} cannot be used: {'; '.join(problems)}.", hint=_HINT
        )
    size = config.get("addition_time_embed_dim") or 0
    told = config.get("projection_class_embeddings_input_dim"), config.get("cross_attention_dim")
    if config["in_channels"] != latent_channels or told != (5 * size + width, width):
        raise IncompatibleWeightsError(f"{folder.name} is no refiner for this model.", hint=_HINT)
    with building(folder.name):
        made = build_unet(config)
    fill(made, "unet", read_tensors(halves or files), dtype)
    return quantized(made, bits) if bits else made


__all__ = ["SCORES", "load_refiner"]
