"""Which number format weights are kept in: fp32 on a CPU, as they are on a GPU, but for CUDA's packed ones.

On a CPU mlx has a fast path (a BLAS) for dense fp32 only. Half-precision products, and quantized ones
with half-precision scales, run on scalar kernels that are ten times slower or worse; quantized ones with
fp32 scales are still several times slower than dense ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map, tree_unflatten

from .._machine.backend import probe


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


@contextmanager
def precise(model: Any) -> Iterator[None]:
    """Meanwhile a model computes in fp32, as far as its weights allow.

    Its embeddings are fp32, and products take the wider type of their two sides, so that the states are. The
    other weights stay as they are; a product makes a copy of its own for as long as it lasts.

    Args:
        model: an ``mlx.nn.Module``.
    """
    names = {nn.Embedding: ("weight",), nn.QuantizedEmbedding: ("scales", "biases")}
    before = [
        (module, name, module[name])
        for module in model.modules()
        for kind, parts in names.items()
        if isinstance(module, kind)
        for name in parts
        if name in module and mx.issubdtype(module[name].dtype, mx.floating)
    ]
    try:
        for module, name, value in before:
            module[name] = value.astype(mx.float32)
        yield
    finally:
        for module, name, value in before:
            module[name] = value


def unpack_where_faster(model: Any, budget: int | None, *, on: Sequence[str] = ("cpu", "cuda")) -> str | None:
    """Replace a model's quantized layers by dense ones where that is faster, if all of them fit.

    On a CPU they become fp32: the numbers are the same, memory is traded for speed. On CUDA they become as
    wide as their scales, where `packed_is_slow`: mlx reads packed weights again for each row of a batch there
    (eight rows of a token took three times as long as dense ones on an H200, and one row no less). Lazy, like
    `upcast_for_cpu`.

    Args:
        model: an ``mlx.nn.Module``.
        budget: most bytes that the dense weights may take; ``None`` is no limit.
        on: the back ends on which it may be done.

    Returns:
        Why it was done, for people; ``None`` where it was not.
    """
    backend = probe().backend
    if backend not in on:
        return None
    if backend == "cpu":
        done = _unpack(model, budget, mx.float32)
        return "unpacked: on a CPU dense fp32 products are faster" if done else None
    done = backend == "cuda" and packed_is_slow() and _unpack(model, budget, None)
    return "unpacked: packed products do not batch here" if done else None


@cache
def packed_is_slow(rows: int = 8, width: int = 4096) -> bool:
    """Whether products with packed weights take half as long again as dense ones, for rows of a token."""
    weight = mx.random.normal((width, width)).astype(mx.bfloat16)
    packed = mx.quantize(weight, group_size=64, bits=4)
    inputs = mx.random.normal((rows, 1, width)).astype(mx.bfloat16)
    mx.eval(weight, packed, inputs)

    def seconds(product: Callable[[], mx.array]) -> float:
        mx.eval(product())
        took = []
        for _ in range(5):
            began = time.perf_counter()
            mx.eval(product())
            took.append(time.perf_counter() - began)
        return min(took)

    slow = seconds(lambda: mx.quantized_matmul(inputs, *packed, transpose=True, group_size=64, bits=4))
    return slow > 1.5 * seconds(lambda: inputs @ weight.T)


def _unpack(model: Any, budget: int | None, dtype: mx.Dtype | None) -> bool:
    """Dense layers of a number format, ``None`` for that of the scales."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
    ]
    size = sum(
        (2 if dtype is None else dtype.size) * module.weight.size * 32 // module.bits for _, module in found
    )
    if not found or (budget is not None and size > budget):
        return False
    model.update_modules(tree_unflatten([(name, _dense(module, dtype)) for name, module in found]))
    return True


def _dense(layer: Any, dtype: mx.Dtype | None) -> Any:
    if dtype is None:
        dtype = layer.scales.dtype if layer.mode == "affine" else mx.bfloat16
    biases = layer.get("biases")
    weight = mx.dequantize(
        layer.weight,
        layer.scales.astype(dtype) if layer.mode == "affine" else layer.scales,
        None if biases is None else biases.astype(dtype),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    ).astype(dtype)
    biased = isinstance(layer, nn.QuantizedLinear) and "bias" in layer
    embeds = isinstance(layer, nn.QuantizedEmbedding)
    dense: Any = nn.Embedding(1, 1) if embeds else nn.Linear(1, 1, bias=biased)
    dense.weight = weight
    if biased:
        dense.bias = layer.bias.astype(dtype)
    return dense


__all__ = ["packed_is_slow", "precise", "unpack_where_faster", "upcast_for_cpu"]
