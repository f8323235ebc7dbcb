"""Checkpoints in diffusers' format into our modules: every tensor accounted for, by its name in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import frozen
from mlx.utils import tree_flatten
from mlxengine.errors import CorruptFileError, IncompatibleWeightsError

from .eight_bits import widened

_SHOWN = 5
_ATTENTION = (
    (".query_proj", ".to_q"),
    (".key_proj", ".to_k"),
    (".value_proj", ".to_v"),
    (".out_proj", ".to_out.0"),
)
_UNET = (
    *_ATTENTION,
    (".downsample", ".downsamplers.0.conv"),
    (".upsample", ".upsamplers.0.conv"),
    (".linear3", ".ff.net.2"),
)
_VAE = (
    *_ATTENTION,
    (".downsample", ".downsamplers.0.conv"),
    (".upsample", ".upsamplers.0.conv"),
    (".mid_blocks.0", ".mid_block.resnets.0"),
    (".mid_blocks.1", ".mid_block.attentions.0"),
    (".mid_blocks.2", ".mid_block.resnets.1"),
    ("post_quant_proj", "post_quant_conv"),
    ("quant_proj", "quant_conv"),
)
_CLIP = (
    ("token_embedding", "embeddings.token_embedding"),
    ("position_embedding", "embeddings.position_embedding"),
    ("layers.", "encoder.layers."),
    (".attention.query_proj", ".self_attn.q_proj"),
    (".attention.key_proj", ".self_attn.k_proj"),
    (".attention.value_proj", ".self_attn.v_proj"),
    (".attention.out_proj", ".self_attn.out_proj"),
    (".linear1", ".mlp.fc1"),
    (".linear2", ".mlp.fc2"),
)
_VISION = tuple(
    (name, f"embeddings.{name}") for name in ("class_embedding", "patch_embedding", "position_embedding")
)
# Buffers and training values that checkpoints carry and no inference reads.
_IGNORED = re.compile(r"(^|\.)position_ids$|^logit_scale$|^vision_model\.|^visual_projection\.")
# The autoencoder of Stable Diffusion 1 and 2 was saved under these older names.
_OLD_VAE = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


@frozen
class Origin:
    """Where a parameter or a module comes from: its name in the checkpoint, and which half of its rows."""

    name: str
    half: int | None = None


def origin(part: str, path: str) -> Origin:
    """The checkpoint's name of a parameter or module of ours; ``part`` is its folder in a repository."""
    if part == "unet":
        # The gated feed-forward is one matrix in the checkpoint: values first, then gates.
        for half, name in enumerate((".linear1", ".linear2")):
            if f".transformer_blocks.{_number(path)}{name}" in path:
                return Origin(_replace(path.replace(name, ".ff.net.0.proj"), _UNET), half)
        return Origin(_replace(path, _UNET))
    if part == "vae":
        return Origin(_replace(path, _VAE))
    if path.startswith(("text_projection", "visual_projection")):
        return Origin(path)
    if part == "image_encoder":
        return Origin("vision_model." + _replace(_replace(path, _VISION), _CLIP[2:]))
    return Origin("text_model." + _replace(path, _CLIP))


def _number(path: str) -> str:
    found = re.search(r"\.transformer_blocks\.(\d+)\.", path)
    return found[1] if found else "-"


def _replace(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    for ours, theirs in pairs:
        if ours in path:
            path = path.replace(ours, theirs, 1)
    return path


def read_tensors(files: Sequence[Path]) -> dict[str, mx.array]:
    """All tensors of the files, not evaluated yet.

    Raises:
        IncompatibleWeightsError: a file has another ending.
        CorruptFileError: a file is not what its header says.
    """
    found: dict[str, mx.array] = {}
    for file in files:
        if file.suffix != ".safetensors":
            raise IncompatibleWeightsError(f"{file} is no .safetensors file.")
        try:
            loaded: Any = mx.load(str(file))
            found.update(widened(file, loaded))
        except (RuntimeError, ValueError, OSError) as error:
            raise CorruptFileError(
                f"{file.name} of {file.absolute().parent.name} cannot be read as safetensors: {error}.",
                hint="Fetch it again: `mlxengine repair` replaces files that are damaged.",
            ) from error
    return found


def fill(module: nn.Module, part: str, tensors: Mapping[str, mx.array], dtype: mx.Dtype) -> None:
    """Give every parameter of ``module`` its tensor, lazily, as ``dtype``.

    Args:
        part: ``"unet"``, ``"vae"`` or ``"text_encoder"`` (also ``"text_encoder_2"``).
        tensors: the checkpoint, as `read_tensors` returns it.

    Raises:
        IncompatibleWeightsError: tensors are missing, left over or of the wrong shape; they are named.
    """
    kind = _kind(part)
    source = {_modern(kind, name): tensor for name, tensor in tensors.items() if not _IGNORED.search(name)}
    fill_by_name(module, part, source, partial(origin, kind), dtype)


def fill_by_name(
    module: nn.Module,
    part: str,
    source: Mapping[str, mx.array],
    place_of: Callable[[str], Origin | None],
    dtype: mx.Dtype,
) -> None:
    """Give every parameter of ``module`` the tensor of ``source`` that ``place_of`` its path names.

    Args:
        part: the name that errors give the module.
        place_of: a parameter's path to its tensor; ``None`` for those that are computed, not stored.

    Raises:
        IncompatibleWeightsError: tensors are missing, left over or of the wrong shape; they are named.
    """
    missing, misshapen, used, filled = [], [], set(), []
    for path, value in tree_flatten(module.parameters()):
        place = place_of(path)
        if place is None:
            filled.append((path, value))
            continue
        tensor = source.get(place.name)
        if tensor is None:
            missing.append(place.name)
            continue
        used.add(place.name)
        fitted = _fit(tensor, value.shape, place.half)
        if fitted is None:
            misshapen.append(f"{place.name} {tuple(tensor.shape)}, not {_expected(value.shape, place.half)}")
        else:
            filled.append((path, fitted.astype(dtype)))
    extra = sorted(set(source) - used)
    problems = [*_listed("missing", sorted(set(missing))), *_listed("not known", extra)]
    problems += _listed("of the wrong shape", misshapen)
    if problems:
        raise IncompatibleWeightsError(
            f"The weights of {part} do not fit its config.json: {'; '.join(problems)}.",
            hint="The file belongs to another model or is damaged: verify it, or look at the configuration.",
        )
    module.load_weights(filled, strict=True)
    module.place_of = place_of  # what adapters call its layers


def _kind(part: str) -> str:
    return "text_encoder" if part.startswith("text_encoder") else "unet" if part == "denoiser" else part


def _modern(kind: str, name: str) -> str:
    if kind == "vae" and ".attentions." in name:
        return _replace(name, _OLD_VAE)
    if kind == "text_encoder" and not name.startswith(("text_model.", "text_projection")):
        return f"text_model.{name}"
    return name


def _fit(tensor: mx.array, shape: tuple[int, ...], half: int | None) -> mx.array | None:
    if half is not None:
        if tensor.shape[0] != 2 * shape[0]:
            return None
        tensor = tensor[half * shape[0] : (half + 1) * shape[0]]
    if tensor.ndim == 4 and len(shape) == 4:
        # Laid out anew once: convolutions would copy a transposed view in every call.
        tensor = mx.contiguous(tensor.transpose(0, 2, 3, 1))
    elif tensor.ndim == 5 and len(shape) == 5:
        tensor = mx.contiguous(tensor.transpose(0, 2, 3, 4, 1))
    elif tensor.ndim == 4 and len(shape) == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor.reshape(tensor.shape[:2])  # a convolution of one pixel is a matrix product
    return tensor if tuple(tensor.shape) == tuple(shape) else None


def _expected(shape: tuple[int, ...], half: int | None) -> tuple[int, ...]:
    if len(shape) in (4, 5):
        return (shape[0], shape[-1], *shape[1:-1])
    return (2 * shape[0], *shape[1:]) if half is not None else tuple(shape)


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"]


def modules_by_origin(module: nn.Module, part: str) -> Iterator[tuple[str, int | None, str, Any]]:
    """Every leaf module with its checkpoint name: (name, half, our path, module).

    Where `fill_by_name` filled ``module``, the names are those that it was told; else ``part`` says them.
    """
    place_of = getattr(module, "place_of", None) or partial(origin, _kind(part))
    for path, item in module.named_modules():
        if path and "weight" in item and (place := place_of(f"{path}.weight")) is not None:
            yield place.name.removesuffix(".weight"), place.half, path, item


__all__ = ["Origin", "fill", "fill_by_name", "modules_by_origin", "origin", "read_tensors"]
