"""Build a model of mlx-vlm from a local folder: normalised, strict, lazy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlxengine.errors import (
    IncompatibleWeightsError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)

from ._checkpoint import fitted, normalise, rename
from ._faults import naming_fields, naming_tensors

_SANITIZED = (
    ("VisionModel", "vision_config"),
    ("LanguageModel", "text_config"),
    ("AudioModel", "audio_config"),
)


def build(folder: Path, config: Mapping[str, Any]) -> Any:
    """The model (an ``mlx.nn.Module``, weights not evaluated) that the folder's checkpoint describes.

    A checkpoint in full precision or in mlx's own quantized layout is read here, with every tensor
    accounted for. Formats of other libraries (fp8, compressed-tensors …) are left to mlx-vlm's loader.

    Raises:
        UnsupportedArchitectureError: mlx-vlm has no such model.
        IncompatibleWeightsError: tensors are missing, unexpected or of the wrong shape.
        RemoteCodeRefusedError: the checkpoint brings its own Python file.
    """
    from mlx_vlm import utils

    plain = normalise(config)
    if "model_file" in plain:
        raise RemoteCodeRefusedError(
            f"The checkpoint wants to run its own code ({plain['model_file']!r}).",
            hint="This plugin never runs a model's own Python file; use a conversion that needs none.",
        )
    try:
        module, kind = utils.get_model_and_args(plain)
        if not hasattr(module, "Model") or "speculative" in module.__name__:
            raise ValueError("it is not a model that chats")
    except (ValueError, ImportError, KeyError) as error:
        raise UnsupportedArchitectureError(
            f"mlx-vlm has no model of type {plain.get('model_type')!r}: {error}.",
            hint="Update mlx-vlm, or choose another model: `mlxengine models --kind vlm`.",
        ) from error
    if plain.get("quantization_config") and "quantization" not in plain:
        with naming_tensors(kind):
            return utils.load_model(folder, lazy=True)
    _merge_generation(folder, plain)
    tensors = rename(kind, _tensors(folder))
    with naming_fields(kind, module, plain):
        plain = fitted(module, plain)
        settings = _settings(utils, module, folder, plain)
        model = module.Model(settings)
    with naming_tensors(kind):
        declared = set(tensors)
        tensors = _sanitized(utils, module, model, settings, tensors)
        return utils.load_model_weights(model, plain, tensors, folder, lazy=True, declared_keys=declared)


def _settings(utils: Any, module: Any, folder: Path, config: dict[str, Any]) -> Any:
    """The configuration as the family's own classes have it."""
    settings = module.ModelConfig.from_dict(config)
    parts = ["text", "vision", "perceiver", "projector", "audio"]
    settings = utils.update_module_configs(settings, module, config, parts)
    settings = utils.apply_generation_config_defaults(settings, config)
    if hasattr(settings, "model_path"):
        settings.model_path = str(folder)
    return settings


def _sanitized(utils: Any, module: Any, model: Any, settings: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors under the names of the model's parameters."""
    tensors = utils.sanitize_weights(model, tensors)
    for name, section in _SANITIZED:
        if hasattr(module, name) and hasattr(settings, section):
            tensors = utils.sanitize_weights(getattr(module, name), tensors, getattr(settings, section))
    return tensors


def _tensors(folder: Path) -> dict[str, Any]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted({folder / name for name in listed.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IncompatibleWeightsError(
                f"{index.name} does not say which file holds which tensor.",
                hint="Compare it with that of the original repository.",
            ) from error
        if gone := [path.name for path in files if not path.is_file()]:
            raise IncompatibleWeightsError(
                f"The index lists files that are not there: {', '.join(gone)}.",
                hint="Fetch the model again: `mlxengine hub fetch`.",
            )
    else:
        files = sorted(folder.glob("*.safetensors"))
        files = [path for path in files if path.name != "consolidated.safetensors"]
    if not files:
        raise IncompatibleWeightsError(
            f"There is no safetensors file in {folder.name!r}.",
            hint="Use a repository in safetensors format.",
        )
    found: dict[str, Any] = {}
    for path in files:
        loaded: Any = mx.load(str(path))
        found.update(loaded)
    return found


def _merge_generation(folder: Path, config: dict[str, Any]) -> None:
    """Generation settings beside the configuration win over those inside it, as in mlx-vlm."""
    path = folder / "generation_config.json"
    if path.is_file():
        stated = json.loads(path.read_text(encoding="utf-8"))
        for key in ("eos_token_id", "temperature", "top_p", "top_k", "do_sample"):
            if key in stated:
                config[key] = stated[key]


__all__ = ["build"]
