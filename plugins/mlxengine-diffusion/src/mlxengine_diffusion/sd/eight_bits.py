"""Weights in floating point of eight bits (e4m3fn), as checkpoints have them: plain, or with a scale a layer.

Scales stand beside a layer's weight, as ComfyUI writes them: ``scale_weight``, or ``weight_scale``. What it
keeps for activations in eight bits is not needed: weights are multiplied out, and layers compute as usual.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

DTYPE = "F8_E4M3"
"""What a safetensors header calls it."""
_SCALES = (".scale_weight", ".weight_scale")
_UNUSED = re.compile(r"\.(scale_input|input_scale)$|^(.*\.)?scaled_fp8$")


def widened(file: Path, tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors of a file, those of eight bits as float32, lazily; the same where it has none."""
    packed = _packed(file)
    if not packed:
        return dict(tensors)
    found = {name: value for name, value in tensors.items() if not _UNUSED.search(name)}
    for name in packed & found.keys():
        value: mx.array = mx.from_fp8(found[name], mx.float32)
        for end in _SCALES:
            if (scale := found.pop(name.removesuffix(".weight") + end, None)) is not None:
                value = value * scale.astype(mx.float32).reshape(-1, *[1] * (value.ndim - 1))
        found[name] = value
    return found


def _packed(file: Path) -> set[str]:
    """The names of the tensors of eight bits: mlx reads them as bytes."""
    with file.open("rb") as source:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
    return {name for name, item in header.items() if item and item.get("dtype") == DTYPE}


__all__ = ["DTYPE", "widened"]
