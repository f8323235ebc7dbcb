"""Which number format weights are kept in: fp32 on a CPU, as they are on a GPU.

On a CPU mlx has a fast path (a BLAS) for dense fp32 only. Half-precision products, and quantized ones
with half-precision scales, run on scalar kernels that are ten times slower or worse.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map


def upcast_for_cpu(model: Any) -> bool:
    """On a CPU device, turn a model's half-precision weights and quantization scales and biases to fp32.

    Lazy: nothing is evaluated, so call it before the weights are. Integer arrays (packed weights) stay.

    Args:
        model: an ``mlx.nn.Module``.

    Returns:
        Whether anything was changed; always ``False`` on a GPU.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        return False
    changed = False

    def upcast(array: Any) -> Any:
        nonlocal changed
        if isinstance(array, mx.array) and array.dtype in (mx.float16, mx.bfloat16):
            changed = True
            return array.astype(mx.float32)
        return array

    model.update(tree_map(upcast, model.parameters()))
    return changed


__all__ = ["upcast_for_cpu"]
