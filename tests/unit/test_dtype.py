"""On a CPU half-precision weights and quantization scales become fp32."""

from __future__ import annotations

import mlxengine.toolkit.backend  # noqa: F401  isort: skip
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlxengine.toolkit.dtype import upcast_for_cpu

on_cpu = pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="the rule is for CPUs")


def model(dtype: mx.Dtype) -> nn.Module:
    built = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    built.set_dtype(dtype)
    return built


@on_cpu
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_weights_become_fp32(dtype: mx.Dtype) -> None:
    built = model(dtype)
    assert upcast_for_cpu(built)
    assert built.layers[0].weight.dtype == mx.float32
    assert not upcast_for_cpu(built)


@on_cpu
def test_quantized_weights_stay_packed_and_their_scales_become_fp32_with_the_same_result() -> None:
    built = model(mx.float16)
    quantized = nn.QuantizedLinear.from_linear(built.layers[0], group_size=64, bits=4)
    x = mx.random.normal((2, 64), key=mx.random.key(0))
    before = quantized(x.astype(mx.float16)).astype(mx.float32)
    assert upcast_for_cpu(quantized)
    assert quantized.weight.dtype == mx.uint32
    assert quantized.scales.dtype == quantized.biases.dtype == mx.float32
    assert mx.allclose(quantized(x), before, atol=2e-2)


@on_cpu
def test_nothing_is_changed_where_all_is_fp32() -> None:
    assert not upcast_for_cpu(model(mx.float32))
