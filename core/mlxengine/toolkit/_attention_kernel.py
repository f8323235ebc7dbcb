"""Attention of rows that decode, one query each under a mask, in one kernel of ours for CUDA.

mlx has no kernel there for one query a row under a mask: it takes five launches, each of which costs the
processor more than the device. This takes one. A block has the query heads of one row that share keys, as
many as fit; each of its warps takes every sixteenth group of positions, keeps a running softmax (Milakov and
Gimelshein, 2018, arXiv:1805.02867), and the last step joins those of the warps. Sums are in fp32.
"""

from __future__ import annotations

import functools
import logging
import struct
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx

from .._machine.backend import probe

log = logging.getLogger("mlxengine.toolkit.attention")

WARPS = 16
HELD = 512
"""Numbers of queries that a block holds, heads times width: its results of all warps take 32 KiB."""

POSITIONS_A_BLOCK = 64
"""So many positions may there be for each block: with fewer blocks products are quicker, which use all of
the device however few rows there are."""

Kernel = Callable[..., "list[mx.array]"]

_SOURCE = r"""
  constexpr int E = WIDTH / 32;  // numbers of a row of keys that a lane has: every 32nd
  constexpr int AHEAD = 4;       // positions that are read before the first of them is used
  constexpr float NONE = -3.0e38f;  // less than any score
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int groups = keys_shape[1], positions = keys_shape[2];
  const int parts = SHARED / HEADS;  // blocks of the query heads that share keys
  const int part = blockIdx.y % parts, group = blockIdx.y / parts % groups;
  const int row = blockIdx.y / (parts * groups);
  const int head = (group * parts + part) * HEADS;
  const T* key = keys + row * keys_strides[0] + group * keys_strides[1] + lane * keys_strides[3];
  const T* value = values + row * values_strides[0] + group * values_strides[1] + lane * values_strides[3];
  const bool* seen = mask + row * mask_strides[0];

  float q[HEADS][E], sum[HEADS][E], most[HEADS], total[HEADS];
  for (int h = 0; h < HEADS; ++h) {
    const T* query = queries + row * queries_strides[0] + (head + h) * queries_strides[1];
    for (int e = 0; e < E; ++e) {
      q[h][e] = static_cast<float>(query[(lane + 32 * e) * queries_strides[3]]) * __int_as_float(SCALE);
      sum[h][e] = 0.0f;
    }
    most[h] = NONE;
    total[h] = 0.0f;
  }
  for (int first = warp * AHEAD; first < positions; first += WARPS * AHEAD) {
    T k[AHEAD][E], v[AHEAD][E];
    bool use[AHEAD];
    #pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const int at = first + a;
      use[a] = at < positions && seen[at * mask_strides[3]];
      if (use[a]) {
        #pragma unroll
        for (int e = 0; e < E; ++e) {
          k[a][e] = key[at * keys_strides[2] + 32 * e * keys_strides[3]];
          v[a][e] = value[at * values_strides[2] + 32 * e * values_strides[3]];
        }
      }
    }
    #pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      if (!use[a]) {
        continue;  // the same for all lanes of the warp
      }
      #pragma unroll
      for (int h = 0; h < HEADS; ++h) {
        float score = 0.0f;
        for (int e = 0; e < E; ++e) {
          score += q[h][e] * static_cast<float>(k[a][e]);
        }
        for (int other = 16; other > 0; other /= 2) {
          score += __shfl_xor_sync(0xffffffff, score, other);
        }
        const float higher = max(most[h], score);
        const float before = __expf(most[h] - higher), weight = __expf(score - higher);
        total[h] = total[h] * before + weight;
        for (int e = 0; e < E; ++e) {
          sum[h][e] = sum[h][e] * before + weight * static_cast<float>(v[a][e]);
        }
        most[h] = higher;
      }
    }
  }
  __shared__ float sums[WARPS][HEADS * WIDTH], mosts[WARPS][HEADS], totals[WARPS][HEADS];
  for (int h = 0; h < HEADS; ++h) {
    for (int e = 0; e < E; ++e) {
      sums[warp][h * WIDTH + lane + 32 * e] = sum[h][e];
    }
    mosts[warp][h] = most[h];
    totals[warp][h] = total[h];
  }
  __syncthreads();
  for (int place = threadIdx.x; place < HEADS * WIDTH; place += WARPS * 32) {
    const int h = place / WIDTH;
    float higher = NONE, whole = 0.0f, found = 0.0f;
    for (int w = 0; w < WARPS; ++w) {
      higher = max(higher, mosts[w][h]);
    }
    for (int w = 0; w < WARPS; ++w) {
      const float share = mosts[w][h] == NONE ? 0.0f : __expf(mosts[w][h] - higher);
      whole += share * totals[w][h];
      found += share * sums[w][place];
    }
    out[(row * groups * SHARED + head) * WIDTH + place] = static_cast<T>(whole > 0.0f ? found / whole : 0.0f);
  }
"""


@functools.cache
def kernel() -> Kernel | None:
    """The kernel, or ``None`` where this device does not run it rightly, which is tried once."""
    if probe().backend != "cuda":
        return None
    from .attention import written_out

    queries, keys, values = (
        mx.random.normal((2, heads, length, 64), key=mx.random.key(heads)).astype(mx.float16)
        for heads, length in ((4, 1), (2, 90), (2, 90))
    )
    mask = (mx.arange(90) >= mx.array([[3], [40]]))[:, None, None]
    try:
        made: Any = mx.fast.cuda_kernel(
            name="attention_of_rows",
            input_names=["queries", "keys", "values", "mask"],
            output_names=["out"],
            source=_SOURCE,
            ensure_row_contiguous=False,  # keys and values are the first part of longer buffers
        )
        found = attend(made, queries, keys[:, :, :77], values[:, :, :77], 0.125, mask[..., :77])
        right = written_out(queries, keys[:, :, :77], values[:, :, :77], 0.125, mask[..., :77])
        off = float(mx.abs(found.astype(mx.float32) - right.astype(mx.float32)).max())
    except Exception as error:  # whatever it is, there is another way
        log.warning("The attention kernel is not used: %s", error)
        return None
    if not off < 0.01:
        log.warning("The attention kernel is not used: it is off by %g on this device.", off)
        return None
    return cast(Kernel, made)


def serves(queries: mx.array, keys: mx.array, values: mx.array, mask: Any) -> bool:
    """Whether such queries are the kernel's: one a row, under a mask for each row, of a width it knows."""
    rows, heads, count, width = queries.shape
    groups, positions = keys.shape[1:3]
    blocks = rows * heads // _heads(heads // groups, width) if width % 32 == 0 and width <= HELD else 0
    return (
        count == 1
        and values.shape[3] == width
        and mask.shape == (rows, 1, 1, positions)
        and queries.dtype == keys.dtype == values.dtype
        and positions <= POSITIONS_A_BLOCK * blocks
    )


def attend(
    made: Kernel, queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array
) -> mx.array:
    """Attention of one query a row; shapes and arguments as those of `written_out`."""
    rows, heads, _, width = queries.shape
    shared = heads // keys.shape[1]
    together = _heads(shared, width)
    (found,) = made(
        inputs=[queries, keys, values, mask],
        template=[
            ("T", queries.dtype),
            ("WIDTH", width),
            ("SHARED", shared),
            ("HEADS", together),
            ("WARPS", WARPS),
            ("SCALE", struct.unpack("i", struct.pack("f", scale))[0]),
        ],
        grid=(WARPS * 32, rows * heads // together, 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[queries.shape],
        output_dtypes=[queries.dtype],
    )
    return found


@functools.cache  # every layer asks twice at each step
def _heads(shared: int, width: int) -> int:
    """How many of the heads that share keys go to one block."""
    return max(count for count in range(1, shared + 1) if shared % count == 0 and count * width <= HELD)


__all__ = ["attend", "kernel", "serves"]
