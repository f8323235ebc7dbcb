"""IP-Adapters: pictures that the UNet attends to beside the prompt, through keys and values of their own.

Source: Ye et al. 2023 (arXiv:2308.06721), in the form of ``h94/IP-Adapter``: a file with the projection of a
picture's embedding (or of its patches, for the kinds called "plus" and "full") and two matrices for each
cross-attention, and CLIP's image encoder in a folder beside it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import frozen
from diffuse_mlx.stable_diffusion.clip import CLIPEncoderLayer
from mlx.utils import tree_flatten
from mlxengine.errors import IncompatibleWeightsError, ModelNotFoundError

from ..backends._work import Pixels
from . import ops
from .adapter_files import few
from .clip import fit_layers
from .config import Config, read_config
from .lora import shared_copy
from .unet import UNet
from .weights import Origin, fill_by_name, origin, read_tensors

# What CLIP's pictures are normed with (openai/clip-vit-large-patch14, preprocessor_config.json).
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_HEAD = 64
_ENCODER = "image_encoder"
_HINT = "Stable Diffusion 1 and XL each take their own, with the image encoder that they were trained with."


class _Encoder(nn.Module):  # type: ignore[misc]
    """CLIP's image encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, patch, eps = config["hidden_size"], config["patch_size"], config.get("layer_norm_eps", 1e-5)
        self.side = config["image_size"]
        self.class_embedding = mx.zeros(width)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(1 + (self.side // patch) ** 2, width)
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)
        self.layers = [
            CLIPEncoderLayer(width, config["num_attention_heads"], config["hidden_act"])
            for _ in range(config["num_hidden_layers"])
        ]
        fit_layers(self.layers, config)
        for layer in self.layers:
            if layer.act is nn.gelu:
                layer.act = ops.gelu
        self.post_layernorm = nn.LayerNorm(width, eps=eps)
        self.visual_projection = nn.Linear(width, config["projection_dim"], bias=False)

    def steps(self, pixels: mx.array, *, whole: bool) -> Generator[None, None, mx.array]:
        """What it says of pictures (n, side, side, 3), normed; a turn for each layer.

        Args:
            whole: the states of every patch before the last layer (n, 1 + patches, width), instead of one
                embedding for each picture (n, width).
        """
        x = self.patch_embedding(pixels)
        x = x.reshape(len(x), -1, x.shape[-1])
        first = mx.broadcast_to(self.class_embedding, (len(x), 1, x.shape[-1]))
        x = self.pre_layrnorm(mx.concatenate([first, x], axis=1) + self.position_embedding.weight)
        for layer in self.layers[:-1] if whole else self.layers:
            x = layer(x)
            mx.eval(x)
            yield None
        found: mx.array = x if whole else self.visual_projection(self.post_layernorm(x[:, 0]))
        return found


class _Summary(nn.Module):  # type: ignore[misc]
    """The plain kind: a few tokens out of one embedding."""

    whole = False

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        outputs, self.inputs = shapes["proj.weight"]
        self.proj = nn.Linear(self.inputs, outputs)
        self.norm = nn.LayerNorm(shapes["norm.weight"][0])

    def __call__(self, x: mx.array) -> mx.array:
        found: mx.array = self.norm(self.proj(x).reshape(len(x), -1, self.norm.weight.shape[0]))
        return found


class _Full(nn.Module):  # type: ignore[misc]
    """The kind called "full": a token for each patch."""

    whole = True

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        outputs, inner = shapes["proj.2.weight"]
        self.inputs = shapes["proj.0.weight"][1]
        self.proj = [
            nn.Linear(self.inputs, inner),
            nn.GELU(),
            nn.Linear(inner, outputs),
            nn.LayerNorm(outputs),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        inner, _, outer, norm = self.proj
        found: mx.array = norm(outer(ops.gelu(inner(x))))
        return found


class _Look(nn.Module):  # type: ignore[misc]
    """Attention of a resampler's tokens to the patches and to each other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def __call__(self, x: mx.array, told: mx.array) -> mx.array:
        told = self.norm2(told)
        keys, values = mx.split(self.to_kv(mx.concatenate([self.norm1(x), told], axis=1)), 2, axis=-1)
        q, k, v = (
            mx.unflatten(item, -1, (-1, _HEAD)).transpose(0, 2, 1, 3)
            for item in (self.to_q(told), keys, values)
        )
        mixed = ops.attention(q, k, v, _HEAD**-0.5)
        found: mx.array = self.to_out(mixed.transpose(0, 2, 1, 3).flatten(-2, -1))
        return found


class _Resampler(nn.Module):  # type: ignore[misc]
    """The kind called "plus": learned tokens that look at the patches."""

    whole = True

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        width, self.inputs = shapes["proj_in.weight"]
        outputs = shapes["proj_out.weight"][0]
        self.latents = mx.zeros(shapes["latents"])
        self.proj_in, self.proj_out = nn.Linear(self.inputs, width), nn.Linear(width, outputs)
        self.norm_out = nn.LayerNorm(outputs)
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        inner, wide = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        self.layers: list[Any] = [[_Look(width, inner), _forward(width, wide)] for _ in range(depth)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.proj_in(x)
        told = mx.repeat(self.latents, len(x), axis=0)
        for look, (norm, inner, _, outer) in self.layers:
            told = told + look(x, told)
            told = told + outer(ops.gelu(inner(norm(told))))
        found: mx.array = self.norm_out(self.proj_out(told))
        return found


def _forward(width: int, wide: int) -> list[nn.Module]:
    inner, outer = nn.Linear(width, wide, bias=False), nn.Linear(wide, width, bias=False)
    return [nn.LayerNorm(width), inner, nn.GELU(), outer]


Shown = Sequence[tuple[mx.array, mx.array]]
"""Keys and values of a picture for each cross-attention in turn: (rows, tokens, width) each."""


@frozen(kw_only=True, eq=False)
class ImagePrompter:
    """An IP-Adapter with its image encoder.

    Args:
        pairs: the matrices of keys and values, in the order of `_attentions`.
    """

    name: str
    encoder: _Encoder
    projection: Any
    pairs: Shown

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, read or not."""
        parts = (self.encoder.parameters(), self.projection.parameters(), list(self.pairs))
        return sum(array.nbytes for _, array in tree_flatten(list(parts)))

    def shown(self, picture: Pixels, n: int, *, guided: bool) -> Generator[None, None, Shown]:
        """What the UNet attends to of a picture, for ``n`` made at once; with guidance, first without it."""
        dtype, whole = self.pairs[0][0].dtype, self.projection.whole
        pixels = mx.array(_looked_at(picture, self.encoder.side)).astype(dtype)
        if guided and whole:  # no picture is a grey one there, and no embedding here
            pixels = mx.concatenate([mx.zeros_like(pixels), pixels])
        states = yield from self.encoder.steps(pixels, whole=whole)
        if guided and not whole:
            states = mx.concatenate([mx.zeros_like(states), states])
        tokens = mx.repeat(self.projection(states), n, axis=0)
        found = [(tokens @ keys.T, tokens @ values.T) for keys, values in self.pairs]
        mx.eval(found)
        return found


def _looked_at(picture: Pixels, side: int) -> np.ndarray[Any, Any]:
    """The middle square, scaled to (1, side, side, 3) and normed, as CLIP's image processor does it."""
    from PIL import Image

    height, width, _ = picture.shape
    short = min(height, width)
    size = width * side // short, height * side // short
    scaled = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = np.array(scaled.crop((left, top, left + side, top + side)), np.float32)
    normed: np.ndarray[Any, Any] = (square / 255 - _MEAN) / _DEVIATION
    return normed[None]


def load_ip_adapter(path: Path, usual: str, context: int, dtype: mx.Dtype) -> ImagePrompter:
    """The adapter of a file, or of a folder in the form of its authors' repository; nothing is evaluated yet.

    Args:
        usual: the file that is taken of such a folder.
        context: width of what the UNet attends to.

    Raises:
        ModelNotFoundError: there is none, or no image encoder beside it.
        IncompatibleWeightsError: it is none, of a kind that is not implemented, or made for another model.
    """
    file = path / usual if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFoundError(f"{path} holds no {usual}.", hint="Name the adapter's file itself.")
    kinds: dict[str, dict[str, mx.array]] = {"image_proj": {}, "ip_adapter": {}}
    strange = []
    for written, value in read_tensors([file]).items():
        kind, _, name = written.partition(".")
        kinds.get(kind, {})[name] = value
        if kind not in kinds:
            strange.append(written)
    project, matrices = kinds.values()
    if strange or not project or not matrices:
        raise IncompatibleWeightsError(f"{file.name} is no IP-Adapter.", hint=_HINT)
    projection = _projection(file.name, project)
    # Two for each cross-attention, which have the odd ones of diffusers' numbers of attentions.
    places = sorted({int(name.split(".")[0]) for name in matrices if name.split(".")[0].isdecimal()})
    wanted = [f"{place}.to_{kind}_ip.weight" for place in places for kind in "kv"]
    if sorted(wanted) != sorted(matrices):
        others = sorted(set(matrices) ^ set(wanted))
        raise IncompatibleWeightsError(
            f"{file.name} is an IP-Adapter with tensors missing or too many: {few(others)}."
        )
    if any(matrices[name].shape[1] != context for name in wanted):
        raise IncompatibleWeightsError(f"{file.name} was made for another model.", hint=_HINT)
    folder = _beside(file, projection)
    encoder = _encoder(folder, dtype)
    fill_by_name(projection, file.name, project, Origin, dtype)
    cast = [matrices[name].astype(dtype) for name in wanted]
    pairs = list(zip(cast[::2], cast[1::2], strict=True))
    return ImagePrompter(name=file.name, encoder=encoder, projection=projection, pairs=pairs)


def _projection(name: str, tensors: Mapping[str, mx.array]) -> Any:
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    try:
        if "proj.weight" in shapes:
            return _Summary(shapes)
        if "proj.3.weight" in shapes:
            return _Full(shapes)
        if "latents" in shapes:
            return _Resampler(shapes)
    except (KeyError, ValueError) as error:
        raise IncompatibleWeightsError(f"{name} is a damaged IP-Adapter: {error} is missing.") from error
    raise IncompatibleWeightsError(
        f"{name} is an IP-Adapter of a kind that is not implemented: it looks at faces as another program "
        f"measures them (FaceID), or has {sorted(shapes)[:3]}.",
        hint="The plain kind, plus and full are.",
    )


def _beside(file: Path, projection: Any) -> Path:
    """The folder of the image encoder that the adapter was trained with."""
    folders = [file.parent / _ENCODER, file.parent.parent / "models" / _ENCODER]
    key = "hidden_size" if projection.whole else "projection_dim"
    found = {}
    for folder in folders:
        if (folder / "config.json").is_file():
            found[folder] = read_config(folder / "config.json").get(key)
    for folder, width in found.items():
        if width == projection.inputs:
            return folder
    if found:
        raise IncompatibleWeightsError(
            f"{file.name} takes {projection.inputs} numbers of an image encoder; {key} is "
            f"{', '.join(map(str, found.values()))} of what lies beside it.",
            hint="SDXL's adapters take another encoder than Stable Diffusion 1's, but for those named vit-h.",
        )
    raise ModelNotFoundError(
        f"There is no image encoder for {file.name}: {' or '.join(map(str, folders))}.",
        hint=f"Put the folder {_ENCODER} of its repository beside the file.",
    )


def _encoder(folder: Path, dtype: mx.Dtype) -> _Encoder:
    config = {
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
        "projection_dim": 512,
        **read_config(folder / "config.json"),
    }
    try:
        made = _Encoder(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise IncompatibleWeightsError(
            f"{folder} is no image encoder of CLIP: its config.json has no good {error}."
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    halves = [item for item in files if ".fp16." in item.name]
    if not files:
        raise ModelNotFoundError(
            f"{folder} holds no .safetensors file.",
            hint="Pickles (.bin) are never loaded: `mlxengine convert --from-bin` rewrites them.",
        )
    tensors = read_tensors(halves or files)
    source = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    fill_by_name(made, _ENCODER, source, partial(origin, _ENCODER), dtype)
    return made


def looking(unet: UNet, shown: Sequence[tuple[ImagePrompter, float, Shown]]) -> UNet:
    """A view of the UNet that attends to pictures as well, each at its strength.

    Raises:
        IncompatibleWeightsError: an adapter was made for another UNet.
    """
    view: UNet = shared_copy(unet)
    blocks = list(_blocks(view))
    for adapter, _, pairs in shown:
        widths = [block.norm2.weight.shape[0] for block in blocks]
        if widths != [keys.shape[-1] for keys, _ in pairs]:
            raise IncompatibleWeightsError(f"{adapter.name} was made for another model.", hint=_HINT)
    for place, block in enumerate(blocks):
        block.attn2.seen = [[strength, *map(block.attn2.heads, pairs[place])] for _, strength, pairs in shown]
    return view


def _blocks(unet: UNet) -> Iterator[Any]:
    """The blocks with a cross-attention, in the order in which adapters number them: the middle is last."""
    levels: list[Any] = [*unet.down_blocks, *unet.up_blocks, unet.mid_block]
    for level in levels:
        for transformer in level.get("attentions", ()):
            yield from transformer.transformer_blocks


__all__ = ["ImagePrompter", "Shown", "load_ip_adapter", "looking"]
