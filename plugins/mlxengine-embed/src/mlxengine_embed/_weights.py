"""Filling modules from safetensors files, strictly: every parameter, and nothing that is not one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlxengine.errors import IncompatibleWeightsError


def read_folder(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder's ``*.safetensors`` files (not its subfolders'), lazily.

    Raises:
        IncompatibleWeightsError: there is no such file, or one cannot be read.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [path.name for path in folder.glob("*.bin")]
        raise IncompatibleWeightsError(
            f"{folder} holds no safetensors file{f', only {pickled[0]}' if pickled else ''}.",
            hint="Pickled weights are never loaded: choose a repository (or revision) with safetensors, or "
            "convert them: mlxengine convert --from-bin.",
        )
    weights: dict[str, Any] = {}
    for file in files:
        weights.update(read_file(file))
    return weights


def read_file(file: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file, lazily.

    Raises:
        IncompatibleWeightsError: it cannot be read.
    """
    try:
        loaded: Any = mx.load(str(file))
        return dict(loaded)
    except Exception as error:
        raise IncompatibleWeightsError(f"{file} cannot be read: {error}") from error


def fill(
    module: Any,
    weights: Mapping[str, Any],
    rename: Callable[[str], str | None],
    quantization: Mapping[str, Any] | None,
    name: str,
) -> None:
    """Put the checkpoint's tensors into a module; quantize those layers that the checkpoint has quantized.

    Args:
        module: an ``mlx.nn.Module``.
        weights: the checkpoint's tensors.
        rename: the module's name of a tensor, ``None`` to leave it out.
        quantization: the configuration's ``quantization`` (``bits``, ``group_size``, ``mode``), or ``None``.
        name: what is being filled, for messages.

    Raises:
        IncompatibleWeightsError: a tensor is missing, unexpected, or of the wrong shape.
    """
    mine = {new: value for key, value in weights.items() if (new := rename(key)) is not None}
    if any(key.endswith(".scales") for key in mine):
        _quantize(module, mine, quantization, name)
    expected = dict(tree_flatten(module.parameters()))
    missing, extra = sorted(expected.keys() - mine.keys()), sorted(mine.keys() - expected.keys())
    wrong = [
        f"{key} is {tuple(mine[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in mine and tuple(mine[key].shape) != tuple(value.shape)
    ]
    complaints = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
        for what, items in (("missing", missing), ("unexpected", extra), ("of the wrong shape", wrong))
        if items
    ]
    if complaints:
        raise IncompatibleWeightsError(
            f"The tensors of {name} do not fit its config.json: {'; '.join(complaints)}.",
            hint="The repository is incomplete or of another architecture than it says.",
        )
    module.load_weights(list(mine.items()), strict=True)
    module.eval()


def _quantize(module: Any, mine: Mapping[str, Any], settings: Mapping[str, Any] | None, name: str) -> None:
    if settings is None or "bits" not in settings:
        raise IncompatibleWeightsError(
            f"{name} has quantized tensors, but its config.json has no quantization settings that MLX reads.",
            hint="Choose an MLX conversion or the unquantized repository.",
        )

    def chosen(path: str, layer: Any) -> bool | dict[str, Any]:
        if f"{path}.scales" not in mine or not hasattr(layer, "to_quantized"):
            return False
        own = settings.get(path)
        return dict(own) if isinstance(own, Mapping) else True

    nn.quantize(
        module,
        group_size=settings.get("group_size", 64),
        bits=settings["bits"],
        mode=settings.get("mode", "affine"),
        class_predicate=chosen,
    )


__all__ = ["fill", "read_file", "read_folder"]
