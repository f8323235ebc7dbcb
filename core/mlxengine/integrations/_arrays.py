"""Vectors as sentence-transformers gives them: in other precisions, and as tensors of torch."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigurationError, InvalidParameterError


def quantized(vectors: Any, precision: str) -> Any:
    """Vectors of another precision: each dimension's range in 256 steps, or the signs, eight in a byte."""
    import numpy as np

    if precision.endswith("binary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if len(vectors) == 1:
        raise InvalidParameterError(
            f"precision={precision!r} cannot find each dimension's range in a single text.",
            hint="Encode more texts at once, or give ranges to embed of model.handle.",
        )
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    steps = (high - low) / 255
    levels = np.clip(np.floor((vectors - low) / np.where(steps == 0, 1, steps)), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)


def like(found: Any, *sides: Any) -> Any:
    """A tensor if a side was one (or a list of them), else an array."""
    first = [side[0] if isinstance(side, list) and side else side for side in sides]
    if any(type(item).__module__.partition(".")[0] == "torch" for item in first):
        return torch_for("a tensor").from_numpy(found.numpy().copy())
    return found.numpy().copy()


def torch_for(wanted: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ConfigurationError(
            f"{wanted} makes a tensor of torch, which is not installed.",
            hint="Leave it out to get numpy arrays, or install torch.",
        ) from error
    return torch


__all__ = ["like", "quantized", "torch_for"]
