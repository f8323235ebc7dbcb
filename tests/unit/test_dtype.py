"""On a CPU half-precision weights and quantization scales become fp32."""

from __future__ import annotations

import mlxengine._machine.backend  # noqa: F401  isort: skip
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlxengine._machine.backend import Probe
from mlxengine.toolkit import dtype as formats
from mlxengine.toolkit.dtype import packed_is_slow, unpack_where_faster, upcast_for_cpu

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


def quantized(**how: object) -> nn.Module:
    built = model(mx.float16)
    built.layers.append(nn.Embedding(32, 64))
    built.layers[2].set_dtype(mx.float16)
    nn.quantize(built, **how)
    return built


@on_cpu
@pytest.mark.parametrize(
    "how", [{"group_size": 32, "bits": 4}, {"group_size": 32, "bits": 4, "mode": "mxfp4"}]
)
def test_quantized_layers_become_dense_with_the_same_weights(how: dict[str, object]) -> None:
    built = quantized(**how)
    x = mx.random.normal((2, 64), key=mx.random.key(0))
    ids = mx.array([3, 31])
    before = [built.layers[0](x), built.layers[1](x), built.layers[2](ids), built.layers[2].as_linear(x)]
    assert unpack_where_faster(built, None)
    first, second, table = built.layers
    assert [type(layer) for layer in built.layers] == [nn.Linear, nn.Linear, nn.Embedding]
    assert first.weight.dtype == second.bias.dtype == table.weight.dtype == mx.float32
    after = [first(x), second(x), table(ids), table.as_linear(x)]
    for old, new in zip(before, after, strict=True):
        assert mx.allclose(old.astype(mx.float32), new, atol=2e-2)
    assert not unpack_where_faster(built, None)


@on_cpu
def test_where_dense_weights_do_not_fit_the_scales_become_fp32_and_the_weights_stay_packed() -> None:
    built = quantized(group_size=32, bits=4)
    assert upcast_for_cpu(built)
    assert not unpack_where_faster(built, budget=1000)
    assert type(built.layers[0]) is nn.QuantizedLinear
    assert built.layers[0].weight.dtype == mx.uint32
    assert built.layers[0].scales.dtype == built.layers[0].biases.dtype == mx.float32


@on_cpu
def test_nothing_is_changed_where_all_is_fp32() -> None:
    assert not upcast_for_cpu(model(mx.float32))


@pytest.mark.parametrize("slow", [True, False])
def test_on_cuda_layers_become_dense_in_their_own_width_where_packed_products_are_slow(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "probe", lambda: Probe(backend="cuda"))
    monkeypatch.setattr(formats, "packed_is_slow", lambda: slow)
    built = quantized(group_size=32, bits=4)
    assert unpack_where_faster(built, None, on=("cpu",)) is None
    assert unpack_where_faster(built, budget=1000) is None
    said = unpack_where_faster(built, None)
    if slow:
        assert said == "unpacked: packed products do not batch here"
        assert [layer.weight.dtype for layer in built.layers] == [mx.float16] * 3
    else:
        assert said is None
        assert type(built.layers[0]) is nn.QuantizedLinear


def test_on_metal_packed_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "probe", lambda: Probe(backend="metal"))
    assert unpack_where_faster(quantized(group_size=32, bits=4), None) is None


def test_packed_products_are_timed_beside_dense_ones() -> None:
    assert packed_is_slow(rows=2, width=256) in (True, False)
