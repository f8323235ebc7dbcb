"""Which number format weights are kept in: fp32 on a CPU, as they are on a GPU.

On a CPU mlx has a fast path (a BLAS) for dense fp32 only. Half-precision products, and quantized ones
with half-precision scales, run on scalar kernels that are ten times slower or worse; quantized ones with
fp32 scales are still several times slower than dense ones.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map, tree_unflatten


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


def dequantize_for_cpu(model: Any, budget: int | None) -> bool:
    """On a CPU device, replace a model's quantized layers by dense fp32 ones, if all of them fit.

    The numbers are the same; memory is traded for speed. Lazy, like `upcast_for_cpu`.

    Args:
        model: an ``mlx.nn.Module``.
        budget: most bytes that the dense weights may take; ``None`` is no limit.

    Returns:
        Whether the layers were replaced; always ``False`` on a GPU.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        return False
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
    ]
    size = sum(4 * module.weight.size * 32 // module.bits for _, module in found)
    if not found or (budget is not None and size > budget):
        return False
    model.update_modules(tree_unflatten([(name, _dense(module)) for name, module in found]))
    return True


def _dense(layer: Any) -> Any:
    weight = mx.dequantize(
        layer.weight,
        layer.scales.astype(mx.float32) if layer.mode == "affine" else layer.scales,
        layer.biases.astype(mx.float32) if layer.get("biases") is not None else None,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    ).astype(mx.float32)
    biased = isinstance(layer, nn.QuantizedLinear) and "bias" in layer
    embeds = isinstance(layer, nn.QuantizedEmbedding)
    dense: Any = nn.Embedding(1, 1) if embeds else nn.Linear(1, 1, bias=biased)
    dense.weight = weight
    if biased:
        dense.bias = layer.bias.astype(mx.float32)
    return dense


__all__ = ["dequantize_for_cpu", "upcast_for_cpu"]
