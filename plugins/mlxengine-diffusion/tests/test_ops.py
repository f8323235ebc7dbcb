"""The arithmetic that leaves mlx on a CPU, against double precision, with MKL's functions and without."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from mlxengine_diffusion.sd import ops, winograd

Array = np.ndarray[Any, Any]
VALUES = np.concatenate([np.linspace(-12, 12, 70_001), [-1e4, -90.0, -0.0, 90.0, 1e4]]).astype(np.float32)


@pytest.fixture(params=["as installed", "numpy alone"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With MKL where it is installed, and without."""
    if request.param == "numpy alone":
        monkeypatch.setattr(ops, "_mkl", lambda: None)


def reference_gelu(x: Array) -> Array:
    return np.array([value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype(np.float64)])


def reference_silu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize(
    ("ours", "reference"), [(ops.gelu, reference_gelu), (ops.silu, reference_silu)], ids=["gelu", "silu"]
)
def test_activations_are_those_of_double_precision(
    ours: Callable[[Any], Any], reference: Callable[[Array], Array]
) -> None:
    import mlx.core as mx

    assert np.allclose(np.array(ours(mx.array(VALUES))), reference(VALUES), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("sizes", [(300, 1100), (150, 77)], ids=["large heads", "small heads"])
@pytest.mark.parametrize("scale", [0.3, 40.0], ids=["small scores", "scores that would overflow"])
def test_attention_is_that_of_double_precision(scale: float, sizes: tuple[int, int]) -> None:
    import mlx.core as mx

    random = np.random.RandomState(0)
    asked, keys = sizes
    q, k, v = (random.standard_normal((2, rows, 7, 8)).astype(np.float32) for rows in (asked, keys, keys))
    given = [mx.array(item).transpose(0, 2, 1, 3) for item in (q, k, v)]
    scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = np.einsum("bhqk,bkhd->bhqd", weights / weights.sum(-1, keepdims=True), v)
    assert np.allclose(np.array(ops.attention(*given, scale)), wanted, atol=3e-4 if scale > 1 else 1e-5)


@pytest.mark.parametrize("bias", [True, False], ids=["biased", "plain"])
def test_gated_products_are_those_of_double_precision(bias: bool) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    layers = [nn.Linear(40, 600, bias=bias) for _ in range(2)]
    for layer in layers if bias else ():
        layer.bias = mx.random.normal((600,))
    x = mx.random.normal((2, 70, 40), key=mx.random.key(2))
    values, gates = (
        np.array(x, np.float64) @ np.array(item.weight, np.float64).T
        + (np.array(item.bias, np.float64) if bias else 0)
        for item in layers
    )
    wanted = values * reference_gelu(gates.reshape(-1)).reshape(gates.shape)
    assert np.abs(np.array(ops.gated_products(*layers, x)) - wanted).max() < 1e-5


@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["centred", "far from zero"])
def test_a_layer_norm_is_that_of_double_precision(offset: float) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    norm = nn.LayerNorm(320)
    norm.weight, norm.bias = mx.random.normal((320,)), mx.random.normal((320,))
    x = mx.random.normal((2, 150, 320)) + offset
    wide = np.array(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    wanted = wanted * np.array(norm.weight, np.float64) + np.array(norm.bias, np.float64)
    assert np.abs(np.array(ops.layer_norm(norm, x)) - wanted).max() < (2e-5 if offset else 4e-6)


@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["centred", "far from zero"])
def test_a_group_norm_is_that_of_mlx(offset: float) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    norm = nn.GroupNorm(4, 24, eps=1e-6, pytorch_compatible=True)
    norm.weight, norm.bias = mx.random.normal((24,)), mx.random.normal((24,))
    x = mx.random.normal((2, 9, 7, 24)) + offset
    wanted = norm(x)
    assert mx.abs(ops.group_norm(norm, x) - wanted).max().item() < 1e-4
    assert mx.abs(ops.activated(norm, x) - nn.silu(wanted)).max().item() < 1e-4
    for rows in (1, 2):
        added = mx.random.normal((rows, 24))
        wanted = nn.silu(norm(x + added[:, None, None]))
        assert mx.abs(ops.activated(norm, x, added) - wanted).max().item() < 1e-4


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, (37, 29)), (3, 2, 1, (37, 29)), (3, 2, 0, (38, 30)), (1, 1, 0, (33, 20)), (3, 1, 1, (1, 1))],
    ids=str,
)
def test_a_convolution_in_bands_of_rows_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    layer = nn.Conv2d(4, 6, kernel, stride=stride, padding=padding)
    x = mx.random.normal((2, *size, 4), key=mx.random.key(1))
    whole, plain = np.array(layer(x)), np.array(layer(x) - layer.bias)
    monkeypatch.setattr(ops, "_UNFOLDED", 1)
    assert np.array_equal(np.array(ops.convolved(layer, x)), whole)
    assert np.abs(np.array(ops.convolved(layer, x, biased=False)) - plain).max() < 1e-6


def test_fused_kernels_are_those_of_separate_ones_for_any_size() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    norm = nn.GroupNorm(4, 24, eps=1e-6, pytorch_compatible=True)
    norm.weight, norm.bias = mx.random.normal((24,)), mx.random.normal((24,))
    with ops.traceable():
        for shape in ((2, 9, 7, 24), (1, 3, 4, 24)):
            x, gate = mx.random.normal(shape) + 3, mx.random.normal(shape)
            wanted = norm(x)
            assert mx.abs(ops.group_norm(norm, x) - wanted).max().item() < 1e-5
            assert mx.abs(ops.activated(norm, x) - nn.silu(wanted)).max().item() < 1e-5
            assert mx.abs(ops.gated(x, gate) - x * nn.gelu(gate)).max().item() < 1e-5
            assert mx.abs(ops.joined(x, norm.bias, gate) - (x + norm.bias + gate)).max().item() < 1e-5
    assert len(list(ops.warm(mx.float32))) == 5


@pytest.mark.parametrize("size", [(8, 13), (32, 32), (47, 129)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize(
    "limits", [{}, {"_SMALL_PRODUCT": 1}, {"_TILES": 1, "_BAND": 1}], ids=["some outputs", "all", "bands"]
)
def test_a_large_convolution_with_fewer_products_is_that_of_mlx(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], bias: bool, limits: dict[str, int]
) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    for name, value in limits.items():
        monkeypatch.setattr(winograd, name, value)
    layer = nn.Conv2d(64, 80, 3, padding=1, bias=bias)
    if bias:
        layer.bias = mx.random.normal((80,))
    x = mx.random.normal((2, *size, 64), key=mx.random.key(1)) + 1
    assert winograd.pays(layer, x)
    wanted = layer(x)
    found = ops.convolved(layer, x)
    assert mx.abs(found - wanted).max().item() < 4e-5 * mx.abs(wanted).max().item()


def test_convolutions_of_another_kind_or_too_small_are_left_to_mlx() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    places = mx.zeros((2, 32, 32, 64))
    for changes in ({"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}):
        layer = nn.Conv2d(64, 64, 3, **{"padding": 1, **changes})
        assert not winograd.pays(layer, places), changes
    usual = nn.Conv2d(64, 64, 3, padding=1)
    assert winograd.pays(usual, places)
    assert not winograd.pays(usual, places[:, :4, :12])
    assert winograd.pays(usual, places[:, :4, :13])
    assert not winograd.pays(nn.Conv2d(64, 32, 3, padding=1), places)
    assert not winograd.pays(nn.Conv2d(64, 64, 1), places)


@pytest.mark.parametrize("size", [(8, 8, 320), (16, 16, 96), (32, 32, 128), (64, 64, 64)], ids=str)
def test_images_are_convolved_and_multiplied_as_they_are_alone(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int]
) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    width = size[-1]
    convolution, linear = nn.Conv2d(width, width, 3, padding=1), ops.Linear(width, 4 * width)
    x = mx.random.normal((4, *size), key=mx.random.key(1))
    assert winograd.pays(convolution, x)
    monkeypatch.setattr(ops, "_numpy_multiplies", lambda: True)
    for layer in (partial(ops.convolved, convolution), linear):
        alone = mx.concatenate([layer(x[:2]), layer(x[2:])])
        assert mx.array_equal(layer(x), alone)


@pytest.mark.parametrize("bias", [True, False], ids=["biased", "plain"])
def test_a_linear_layer_by_numpy_is_that_of_mlx(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    plain = nn.Linear(320, 512, bias=bias)
    ours = ops.Linear(320, 512, bias=bias)
    ours.update(plain.parameters())
    x = mx.random.normal((2, 256, 320), key=mx.random.key(1))
    asked = []
    monkeypatch.setattr(ops, "_numpy_multiplies", lambda: asked.append(True) or True)
    assert mx.abs(ours(x) - plain(x)).max().item() < 1e-5
    assert asked
    assert mx.array_equal(ours(x[:, :2]), plain(x[:, :2]))
    assert len(asked) == 1
