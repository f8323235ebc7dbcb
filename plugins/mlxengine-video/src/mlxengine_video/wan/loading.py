"""The library's networks, made as a repository says, and every tensor of its files in its place.

The library fills its networks with ``strict=False``: what is missing stays random. Here it is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlxengine.errors import BackendUnavailableError, CorruptFileError, IncompatibleWeightsError
from mlxengine.toolkit.launching import waiting

from . import names
from .shape import Documents

_SHOWN = 5
_FAR = 128  # tokens apart from which on all are in one bucket
# What is float32 whatever the rest is: in the transformer what diffusers keeps so; in the text encoder the
# norms, so that its states are float32 too: those of a T5 outgrow float16.
_PRECISE = re.compile(r"(^|\.)(modulation|norm3|time_embedding_\d)(\.|$)")
_PRECISE_TEXT = re.compile(r"(^|\.)norm\d?\.")
_COPY = "encoder.embed_tokens.weight"  # of the text encoder's table, which the library keeps once


def transformer(folder: Path, part: str, config: Mapping[str, Any], dtype: mx.Dtype) -> Any:
    """A ``WanModel``; time embeddings, norms and modulations stay float32, as in diffusers.

    Raises:
        IncompatibleWeightsError, CorruptFileError: the files do not fit, or are damaged.
        BackendUnavailableError: the library is not there.
    """
    library = _library("model")
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    made = library.WanModel(
        library.WanModelConfig(
            model_type="t2v",
            patch_size=(1, 2, 2),
            in_dim=config["in_channels"],
            out_dim=config["out_channels"] or config["in_channels"],
            dim=dim,
            ffn_dim=config["ffn_dim"],
            freq_dim=config["freq_dim"],
            text_dim=config["text_dim"],
            num_heads=config["num_attention_heads"],
            num_layers=config["num_layers"],
            cross_attn_norm=config["cross_attn_norm"],
            eps=config["eps"],
        )
    )
    waiting(made.blocks, ahead=0)  # of a video one is long: nothing has to be launched before it is done
    return _filled(made, part, read(folder / part), names.transformer, dtype, _PRECISE)


def text_encoder(folder: Path, config: Mapping[str, Any], dtype: mx.Dtype) -> Any:
    """A ``T5Encoder`` with UMT5's weights. Raises as `transformer`."""
    made = _library("text_encoder").T5Encoder(
        vocab_size=config["vocab_size"],
        dim=config["d_model"],
        dim_attn=config["d_kv"] * config["num_heads"],
        dim_ffn=config["d_ff"],
        num_heads=config["num_heads"],
        num_layers=config["num_layers"],
        num_buckets=config.get("relative_attention_num_buckets", 32),
        shared_pos=False,
    )
    tensors = read(folder / "text_encoder")
    copy = tensors.pop(_COPY, None)
    if copy is not None:
        tensors.setdefault("shared.weight", copy)
    for block in made.blocks:
        block.pos_embedding._relative_position_bucket = partial(buckets, block.pos_embedding.num_buckets)
    waiting(made.blocks, ahead=0)
    return _filled(made, "text_encoder", tensors, names.text_encoder, dtype, _PRECISE_TEXT)


def buckets(count: int, distances: mx.array) -> mx.array:
    """T5's buckets of distances between tokens, either way: single ones near by, wider ones up to 128.

    The library takes a logarithm on the device. At 16, 32 and 64 it is a whole number, and a device whose
    logarithm is a little too small would put them one bucket too near; comparing with the bounds cannot.
    """
    half, single = count // 2, count // 4
    wide = half - single
    bounds = [math.ceil(single * (_FAR / single) ** (step / wide) - 1e-9) for step in range(1, wide)]
    far = mx.abs(distances)
    beyond = single + sum((far >= bound).astype(mx.int32) for bound in bounds)
    return (distances > 0).astype(mx.int32) * half + mx.where(far < single, far, beyond)


def vae_networks(folder: Path, documents: Documents) -> Any:
    """The autoencoder's networks in float32: ``decoder`` after ``conv2``, and ``encoder`` before ``conv1``.

    Those that the library makes around them have widths of their own written into them, and numbers of the
    latents' distribution. Raises as `transformer`.
    """
    config, tensors = documents.vae, read(folder / "vae")
    nested = bool(config["is_residual"])
    library = _library("vae22" if nested else "vae")
    halved, width = tuple(config["temperal_downsample"]), config["z_dim"]
    options = {"dim_mult": list(config["dim_mult"]), "num_res_blocks": config["num_res_blocks"]}
    down, up = (
        ("temperal_downsample", "temperal_upsample")
        if nested
        else ("temporal_downsample", "temporal_upsample")
    )
    made = nn.Module()
    made.conv2 = library.CausalConv3d(width, width, 1)
    made.decoder = library.Decoder3d(
        dim=config["decoder_base_dim"], z_dim=width, **{up: halved[::-1]}, **options
    )
    if documents.shape.takes_picture:
        made.conv1 = library.CausalConv3d(2 * width, 2 * width, 1)
        made.encoder = library.Encoder3d(dim=config["base_dim"], z_dim=2 * width, **{down: halved}, **options)
    else:
        unused = ("encoder.", "quant_conv.")
        tensors = {name: value for name, value in tensors.items() if not name.startswith(unused)}
    name_of = names.autoencoder(config["num_res_blocks"], nested=nested)
    return _filled(made, "vae", tensors, name_of, mx.float32)


def read(folder: Path) -> dict[str, mx.array]:
    """All tensors of a part, not evaluated yet: of the files that its index names, or of its only file.

    Raises:
        IncompatibleWeightsError: there are none, or more than one way to read them.
        CorruptFileError: a file is not what its header says.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indexes) == 1:
        try:
            listed = set(json.loads(indexes[0].read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{indexes[0].name} of {folder.name} is no list of files.", hint="Fetch it again."
            ) from error
        if absent := listed - {file.name for file in files}:
            raise IncompatibleWeightsError(
                f"{folder.name} lacks {', '.join(sorted(absent))}.", hint="Fetch the repository again."
            )
        files = [file for file in files if file.name in listed]
    elif len(files) != 1:
        raise IncompatibleWeightsError(
            f"{folder.name} has {len(files)} safetensors files and {len(indexes)} lists of them.",
            hint="One file, or one list that says which belong together, is what can be read.",
        )
    found: dict[str, mx.array] = {}
    for file in files:
        try:
            loaded: Any = mx.load(str(file))
        except (RuntimeError, ValueError, OSError) as error:
            raise CorruptFileError(
                f"{file.name} of {folder.name} cannot be read as safetensors: {error}.",
                hint="Fetch it again: `mlxengine repair` replaces files that are damaged.",
            ) from error
        found.update(loaded)
    return found


def _library(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"mlx_video.models.wan.{module}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"Wan runs on mlx-video-with-audio, which cannot be imported: {error}.",
            hint='Install it: pip install "mlx-video-with-audio>=0.1.37". (mlx-video is something else.)',
        ) from error


def _filled(
    network: Any,
    part: str,
    tensors: Mapping[str, mx.array],
    name_of: names.Names,
    dtype: mx.Dtype,
    precise: re.Pattern[str] | None = None,
) -> Any:
    """The network with every parameter's tensor, lazily, as ``dtype``; as float32 where ``precise`` is found.

    Raises:
        IncompatibleWeightsError: tensors are missing, left over, or of the wrong shape; they are named.
    """
    missing, misshapen, packed, used, filled = [], [], [], set(), []
    for path, value in tree_flatten(network.parameters()):
        # The library leaves gaps in its lists of layers, so that they are numbered as the original's.
        name = None if value is None else name_of(path)
        if name is None:
            continue
        tensor = tensors.get(name)
        if tensor is None:
            missing.append(name)
            continue
        used.add(name)
        if not mx.issubdtype(tensor.dtype, mx.floating):
            packed.append(name)  # float8 among them, which mlx reads as bytes
            continue
        fitted = _fitted(tensor, value.shape)
        if fitted is None:
            misshapen.append(f"{name} {tuple(tensor.shape)}")
        else:
            own = mx.float32 if precise is not None and precise.search(path) else dtype
            filled.append((path, fitted.astype(own)))
    problems = [
        f"{len(found)} {what} ({', '.join(found[:_SHOWN])}{' …' if len(found) > _SHOWN else ''})"
        for what, found in (
            ("missing", missing),
            ("not known", sorted(set(tensors) - used)),
            ("of the wrong shape", misshapen),
            ("quantized or no numbers with a fraction", packed),
        )
        if found
    ]
    if problems:
        raise IncompatibleWeightsError(
            f"The weights of {part} do not fit its config.json: {'; '.join(problems)}.",
            hint="The files are another model's or damaged: verify them, or look at the configuration.",
        )
    network.update(tree_unflatten(filled))
    return network


def _fitted(tensor: mx.array, shape: tuple[int, ...]) -> mx.array | None:
    """A tensor in the library's order of axes; ``None`` where it is of another shape.

    Channels are last in kernels; norms have no empty axes; the patches' convolution is a matrix.
    """
    if len(shape) == tensor.ndim and tensor.ndim in (4, 5):
        last = (0, *range(2, tensor.ndim), 1)
        # Laid out anew once: convolutions would copy a transposed view in every call.
        tensor = mx.contiguous(tensor.transpose(last))
    elif len(shape) < tensor.ndim and tensor.shape[0] == shape[0] and tensor.size == math.prod(shape):
        tensor = tensor.reshape(shape)
    return tensor if tuple(tensor.shape) == tuple(shape) else None


__all__ = ["read", "text_encoder", "transformer", "vae_networks"]
