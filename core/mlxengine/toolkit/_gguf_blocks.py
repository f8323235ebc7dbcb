"""GGUF's blocks of packed numbers as MLX arrays, without rounding any.

A block is a few scales and the codes of 32 or 256 numbers; the layouts are ggml's (``ggml-common.h`` of
https://github.com/ggml-org/ggml). Where one scale and one bias serve 32 numbers, ``w = scale * q + bias`` is
MLX's affine form with groups of 32, and codes, scales and biases are repacked. ``Q4_K`` and ``Q5_K`` store
those as products of an fp16 and a 6-bit number, 17 significant bits, so that takes fp32 scales. ``Q2_K``,
``Q3_K`` and ``Q6_K`` scale 16 numbers at a time, which MLX has no form for: they become fp32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

GROUP_SIZE = 32

Parts = dict[str, mx.array]


def unpack(kind: str, raw: mx.array, columns: int) -> Parts:
    """A tensor's rows: ``{"weight"}`` of numbers, or of codes with ``{"scales", "biases"}`` of each group.

    Args:
        kind: ggml's name of the type, one of `KINDS`.
        raw: uint8, shape (rows, bytes of a row).
        columns: numbers in a row.
    """
    rows = raw.shape[0]
    if kind in _PLAIN:
        return {"weight": raw.view(_PLAIN[kind]).reshape(rows, columns)}
    size, read = _BLOCKS[kind]
    return read(raw.reshape(rows, -1, size))


def _half(blocks: mx.array, at: int) -> mx.array:
    """The fp16 number at a byte of each block, shape (rows, blocks, 1)."""
    return mx.contiguous(blocks[..., at : at + 2]).view(mx.float16)


def _affine(codes: mx.array, bits: int, scales: mx.array, biases: mx.array) -> Parts:
    """MLX's packed form: codes (rows, ..., numbers), their bits in a row, the lowest first."""
    rows = codes.shape[0]
    if bits == 8:
        packed = codes.reshape(rows, -1)
    elif bits == 4:
        pairs = codes.reshape(rows, -1, 2)
        packed = pairs[..., 0] | (pairs[..., 1] << 4)
    else:  # eight codes fill whole bytes
        eights = codes.reshape(rows, -1, 8).astype(mx.uint64)
        joined = (eights << mx.arange(0, 8 * bits, bits).astype(mx.uint64)).sum(axis=-1, keepdims=True)
        packed = mx.contiguous(joined.view(mx.uint8)[..., :bits]).reshape(rows, -1)
    return {
        "weight": mx.contiguous(packed).view(mx.uint32),
        "scales": scales.reshape(rows, -1),
        "biases": biases.reshape(rows, -1),
    }


def _nibbles(blocks: mx.array) -> mx.array:
    """Codes of 4 bits: the low ones of all bytes, then the high ones."""
    return mx.concatenate([blocks & 15, blocks >> 4], axis=-1)


def _q4_0(blocks: mx.array) -> Parts:
    scale = _half(blocks, 0)
    return _affine(_nibbles(blocks[..., 2:]), 4, scale, -8 * scale)


def _q4_1(blocks: mx.array) -> Parts:
    return _affine(_nibbles(blocks[..., 4:]), 4, _half(blocks, 0), _half(blocks, 2))


def _fifth_bits(blocks: mx.array) -> mx.array:
    """Bit ``i`` of four bytes, as the fifth bit of code ``i``."""
    bits = (blocks[..., None] >> mx.arange(8, dtype=mx.uint8)) & 1
    return bits.reshape(*blocks.shape[:2], 32) << 4


def _q5_0(blocks: mx.array) -> Parts:
    scale = _half(blocks, 0)
    return _affine(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]), 5, scale, -16 * scale)


def _q5_1(blocks: mx.array) -> Parts:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _affine(codes, 5, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: mx.array) -> Parts:
    scale = _half(blocks, 0)
    return _affine(blocks[..., 2:] ^ 128, 8, scale, -128 * scale)  # signed codes become unsigned ones


def _scales_and_biases(blocks: mx.array) -> tuple[mx.array, mx.array]:
    """Of ``Q4_K`` and ``Q5_K``: eight each, of 6 bits in 12 bytes, times an fp16 number each."""
    low, mid, high = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = mx.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    least = mx.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=-1)
    first, second = (_half(blocks, at).astype(mx.float32) for at in (0, 2))
    return first * scales, -(second * least)


def _in_pairs(blocks: mx.array) -> mx.array:
    """Codes of 4 bits: of each 32 bytes the low ones, then the high ones; shape (rows, blocks, 8, 32)."""
    fours = blocks.reshape(*blocks.shape[:2], 4, 32)
    return mx.stack([fours & 15, fours >> 4], axis=3).reshape(*blocks.shape[:2], 8, 32)


def _q4_k(blocks: mx.array) -> Parts:
    return _affine(_in_pairs(blocks[..., 16:]), 4, *_scales_and_biases(blocks))


def _q5_k(blocks: mx.array) -> Parts:
    fifth = (blocks[..., None, 16:48] >> mx.arange(8, dtype=mx.uint8)[:, None]) & 1
    return _affine(_in_pairs(blocks[..., 48:]) | (fifth << 4), 5, *_scales_and_biases(blocks))


def _two_bits(blocks: mx.array) -> mx.array:
    """Codes of 2 bits: of each 32 bytes the lowest ones first; shape (rows, blocks, 8, 32)."""
    halves = blocks.reshape(*blocks.shape[:2], -1, 1, 32)
    return ((halves >> mx.arange(0, 8, 2, dtype=mx.uint8)[:, None]) & 3).reshape(*blocks.shape[:2], -1, 32)


def _dense(codes: mx.array, scales: mx.array, biases: mx.array | None = None) -> Parts:
    """Numbers in fp32; codes (rows, blocks, 8, 32), scales and biases (rows, blocks, 16)."""
    rows, blocks = codes.shape[:2]
    found = codes.astype(mx.float32).reshape(rows, blocks, 16, 16) * scales[..., None]
    if biases is not None:
        found = found - biases[..., None]
    return {"weight": found.reshape(rows, -1)}


def _q2_k(blocks: mx.array) -> Parts:
    scale, least = (_half(blocks, at).astype(mx.float32) for at in (80, 82))
    fours = blocks[..., :16]
    return _dense(_two_bits(blocks[..., 16:80]), scale * (fours & 15), least * (fours >> 4))


def _q3_k(blocks: mx.array) -> Parts:
    # The bit that is kept apart says that 4 is not taken away.
    third = (blocks[..., None, :32] >> mx.arange(8, dtype=mx.uint8)[:, None]) & 1
    codes = (_two_bits(blocks[..., 32:96]) | (third << 2)).astype(mx.int8) - 4
    low, high = blocks[..., 96:104], blocks[..., None, 104:108]
    upper = ((high >> mx.arange(0, 8, 2, dtype=mx.uint8)[:, None]) & 3).reshape(*blocks.shape[:2], 16)
    scales = (_nibbles(low) | (upper << 4)).astype(mx.int8) - 32
    return _dense(codes, _half(blocks, 108).astype(mx.float32) * scales)


def _q6_k(blocks: mx.array) -> Parts:
    halves = blocks[..., :128].reshape(*blocks.shape[:2], 2, 64)
    lower = mx.concatenate([halves & 15, halves >> 4], axis=-1).reshape(*blocks.shape[:2], 8, 32)
    codes = (lower | (_two_bits(blocks[..., 128:192]) << 4)).astype(mx.int8) - 32
    scales = mx.contiguous(blocks[..., 192:208]).view(mx.int8)
    return _dense(codes, _half(blocks, 208).astype(mx.float32) * scales)


_PLAIN = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}

_BLOCKS: Mapping[str, tuple[int, Callable[[mx.array], Parts]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}

KINDS = frozenset(_PLAIN) | frozenset(_BLOCKS)
"""The types that can be read."""

__all__ = ["GROUP_SIZE", "KINDS", "unpack"]
