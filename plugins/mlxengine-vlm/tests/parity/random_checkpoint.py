"""Checkpoints with random weights that anyone can make again: each tensor is drawn from its name.

Only numpy and safetensors are needed, so the same bits come out under torch (where the references are
computed) and under mlx (where they are checked).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

TEXT = [1, 20, 31, 44, 9, 60, 71, 15]
"""A prompt without pictures."""


def tensor(name: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Normal values with the spread of a trained layer; norms are near one, biases small but not zero."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) < 2:
        near = 1.0 if name.endswith("weight") else 0.0
        return (near + 0.1 * values).astype(np.float32)
    return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def pixels(shape: Sequence[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Values of a picture after normalisation, in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, tuple(shape)).astype(np.float32)


def write(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor(name, shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder
