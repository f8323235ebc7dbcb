"""What mlx cannot do on the device that it computes on, found by trying a tiny example of each thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from . import backend  # noqa: F401 - a fast BLAS has to be there before mlx is

import mlx.core as mx  # isort: skip


@frozen(kw_only=True)
class Gap:
    """Something that mlx refuses here, and its own words about it."""

    what: str
    reason: str


def gaps() -> tuple[Gap, ...]:
    """Try everything in `TRIALS`; what fails, with the reason. The first time, a few kernels are compiled."""
    found = []
    for what, trial in TRIALS.items():
        try:
            mx.eval(trial())
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            found.append(Gap(what=what, reason=text))
    return tuple(found)


def _product(kind: mx.Dtype) -> Callable[[], mx.array]:
    return lambda: mx.ones((8, 8), kind) @ mx.ones((8, 8), kind)


def _packed(mode: str, group: int, bits: int) -> Callable[[], mx.array]:
    def trial() -> mx.array:
        settings: dict[str, Any] = {"group_size": group, "bits": bits, "mode": mode}
        packed: Any = mx.quantize(mx.ones((64, 64)), **settings)  # weights, scales and, if affine, biases
        return mx.quantized_matmul(mx.ones((2, 64)), *packed, **settings)

    return trial


def _attention() -> mx.array:
    heads = mx.ones((1, 2, 4, 64))
    return mx.fast.scaled_dot_product_attention(heads, heads, heads, scale=0.125)


def _metal_kernel() -> list[mx.array]:
    kernel: Any = mx.fast.metal_kernel(
        name="twice",
        input_names=["x"],
        output_names=["y"],
        source="y[thread_position_in_grid.x] = 2 * x[thread_position_in_grid.x];",
    )
    made = kernel(
        inputs=[mx.ones(4)],
        grid=(4, 1, 1),
        threadgroup=(4, 1, 1),
        output_shapes=[(4,)],
        output_dtypes=[mx.float32],
    )
    return list(made)


TRIALS: dict[str, Callable[[], Any]] = {
    "float16 products": _product(mx.float16),
    "bfloat16 products": _product(mx.bfloat16),
    "float64 products": _product(mx.float64),
    "weights of 4 bits": _packed("affine", 64, 4),
    "weights of 8 bits": _packed("affine", 64, 8),
    "mxfp4 weights": _packed("mxfp4", 32, 4),
    "nvfp4 weights": _packed("nvfp4", 16, 4),
    "fused attention": _attention,
    "convolutions": lambda: mx.conv2d(mx.ones((1, 8, 8, 4)), mx.ones((4, 3, 3, 4))),
    "Fourier transforms": lambda: mx.fft.rfft(mx.ones(8)),
    "compiled functions": lambda: mx.compile(lambda x: mx.exp(x) * 2 + x)(mx.ones(8)),
    "custom Metal kernels": _metal_kernel,
}

__all__ = ["TRIALS", "Gap", "gaps"]
