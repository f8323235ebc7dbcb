"""Adapters on disk: the folders of mlx-lm, mlx-vlm and PEFT, read as what they add to each layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CorruptFileError, IncompatibleWeightsError, LoadError
from .adapted import Delta
from .loading import check_safetensors


def read_adapter(folder: Path, scale: float = 1.0) -> dict[str, Delta]:
    """What an adapter's folder adds to each layer, by the path of the layer; ``scale`` multiplies its own.

    Raises:
        IncompatibleWeightsError: tensors belong to no LoRA layer.
        LoadError, CorruptFileError: it cannot be read, or is of a kind that is not supported.
    """
    try:
        config = json.loads(folder.joinpath("adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{folder} is not an adapter: its adapter_config.json cannot be read: {error}.",
            hint="Give a folder in mlx-lm's or PEFT's format.",
        ) from error
    is_peft = "peft_type" in config
    file = folder / ("adapter_model.safetensors" if is_peft else "adapters.safetensors")
    if not file.exists():
        raise LoadError(f"{folder} has no {file.name}.")
    check_safetensors(file)
    weights: Any = mx.load(str(file))
    try:
        return _peft(config, weights, scale) if is_peft else _mlx_lm(config, weights, scale)
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"The adapter in {folder} lacks {error}.") from error


def _mlx_lm(config: Mapping[str, Any], weights: Mapping[str, mx.array], scale: float) -> dict[str, Delta]:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise LoadError(f"An adapter of the type {kind!r} cannot be loaded beside the weights.")
    own = float(config["lora_parameters"]["scale"]) * scale
    found = {}
    for path in {name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a")}:
        a, b = weights[f"{path}.lora_a"], weights[f"{path}.lora_b"]
        if a.ndim == 3:  # of experts: (experts, rank, inputs) and (experts, outputs, rank)
            a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        found[path] = Delta(a=a, b=b, scale=own, magnitude=weights.get(f"{path}.m"))
    return _complete(found, weights, 3 if kind == "dora" else 2)


def _peft(config: Mapping[str, Any], weights: Mapping[str, mx.array], scale: float) -> dict[str, Delta]:
    if config["peft_type"] != "LORA" or config.get("alpha_pattern") or config.get("rank_pattern"):
        raise LoadError("Of PEFT's adapters, LoRA and DoRA with one rank and alpha can be loaded.")
    rank = int(config["r"])
    own = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank) * scale
    found = {}
    for name in weights:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            found[stem.removeprefix("base_model.model.")] = Delta(
                a=weights[name].T,
                b=weights[f"{stem}.lora_B.weight"].T,
                scale=own,
                magnitude=weights.get(f"{stem}.lora_magnitude_vector"),
            )
    return _complete(found, weights, 3 if config.get("use_dora") else 2)


def _complete(found: dict[str, Delta], weights: Mapping[str, Any], each: int) -> dict[str, Delta]:
    if not found or len(weights) != each * len(found):
        raise IncompatibleWeightsError(
            f"The adapter has {len(weights)} tensors, of which {each * len(found)} belong to LoRA layers."
        )
    return found


__all__ = ["read_adapter"]
