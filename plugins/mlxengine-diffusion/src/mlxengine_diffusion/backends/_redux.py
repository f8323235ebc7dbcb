"""Redux: what FLUX.1 is told of a picture, as further words of the prompt.

Black Forest Labs' adapter ``FLUX.1-Redux-dev``: SigLIP's image encoder (Zhai et al. 2023, arXiv:2303.15343)
and two matrices that bring its patches to the width of T5's states.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from diffuse_mlx.stable_diffusion.clip import CLIPEncoderLayer
from mlxengine.errors import IncompatibleWeightsError, ModelNotFoundError

from ..sd.clip import fit_layers
from ..sd.config import Config, read_config
from ..sd.weights import Origin, fill_by_name, origin, read_tensors
from ._work import Pixels

FILE = "flux1-redux-dev.safetensors"
"""The file that stands for a repository."""
_ENCODER = "image_encoder"
_POOLING = "vision_model.head."  # sums the patches up for whoever compares pictures
_HINT = "black-forest-labs/FLUX.1-Redux-dev and files in its form are: SigLIP lies beside, in image_encoder."


class _Encoder(nn.Module):  # type: ignore[misc]
    """SigLIP's image encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        self.side = config["image_size"]
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.position_embedding = nn.Embedding((self.side // patch) ** 2, width)
        self.layers = [
            CLIPEncoderLayer(width, config["num_attention_heads"], "gelu")
            for _ in range(config["num_hidden_layers"])
        ]
        fit_layers(self.layers, config)
        for layer in self.layers:
            layer.act = nn.gelu_approx
        self.post_layernorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def steps(self, pixels: mx.array) -> Generator[None, None, mx.array]:
        """The states of every patch (1, patches, width) of a picture (1, side, side, 3); a turn a layer."""
        x = self.patch_embedding(pixels)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
            mx.eval(x)
            yield None
        found: mx.array = self.post_layernorm(x)
        return found


class Redux(nn.Module):  # type: ignore[misc]
    """The two matrices, and the encoder whose patches they take."""

    def __init__(self, encoder: _Encoder, inner: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.redux_up = nn.Linear(encoder.post_layernorm.weight.shape[0], inner)
        self.redux_down = nn.Linear(inner, width)

    def told(self, picture: Pixels) -> Generator[None, None, mx.array]:
        """A picture as words: (1, patches, width of T5's states)."""
        pixels = mx.array(_looked_at(picture, self.encoder.side)).astype(self.redux_up.weight.dtype)
        states = yield from self.encoder.steps(pixels)
        found: mx.array = self.redux_down(nn.silu(self.redux_up(states)))
        mx.eval(found)
        return found


def _looked_at(picture: Pixels, side: int) -> np.ndarray[Any, Any]:
    """The picture stretched to (1, side, side, 3), -1 to 1, as SigLIP's image processor does it."""
    from PIL import Image

    square = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    found: np.ndarray[Any, Any] = np.array(square, np.float32)[None] / 127.5 - 1
    return found


def load_redux(path: Path, width: int, dtype: mx.Dtype) -> Redux:
    """The adapter of a file, or of a folder in the form of its authors' repository; nothing is evaluated yet.

    Args:
        width: of T5's states.

    Raises:
        ModelNotFoundError: there is none, or no image encoder beside it.
        IncompatibleWeightsError: it is none, or made for another model or another encoder.
    """
    places = [path]
    if path.is_dir():
        places = [path / FILE, *sorted((path / "image_embedder").glob("*.safetensors"))]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ModelNotFoundError(f"{path} holds no {FILE}.", hint="Name the adapter's file itself.")
    tensors = read_tensors([file])
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    inner, _ = shapes.get("redux_up.weight", (0, 0))
    if not inner or shapes.get("redux_down.weight") != (width, inner):
        raise IncompatibleWeightsError(f"{file.name} is no Redux for this model.", hint=_HINT)
    folders = [file.parent / _ENCODER, file.parent.parent / _ENCODER]
    folder = next((place for place in folders if (place / "config.json").is_file()), None)
    if folder is None or not (weights := sorted(folder.glob("*.safetensors"))):
        raise ModelNotFoundError(f"There is no image encoder beside {file}.", hint=_HINT)
    try:
        encoder = _Encoder({"layer_norm_eps": 1e-6, **read_config(folder / "config.json")})
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise IncompatibleWeightsError(
            f"{folder} is no image encoder of SigLIP: its config.json has no good {error}."
        ) from error
    source = {name: value for name, value in read_tensors(weights).items() if not name.startswith(_POOLING)}
    fill_by_name(encoder, _ENCODER, source, partial(origin, _ENCODER), dtype)
    made = Redux(encoder, inner, width)
    fill_by_name(
        made, file.name, tensors, lambda name: None if name.startswith("encoder.") else Origin(name), dtype
    )
    return made


__all__ = ["FILE", "Redux", "load_redux"]
