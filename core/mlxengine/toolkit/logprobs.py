"""Log-probabilities of logits, the same for what is generated and for what is scored."""

from __future__ import annotations

import mlx.core as mx

_BLOCKS = 256


def normalised(logits: mx.array) -> mx.array:
    """Log-probabilities in fp32 of logits, both of shape (rows, vocabulary).

    The sum is made of sums of blocks. mlx's ``logsumexp`` adds up in fp32 on a CPU, one term after another:
    over a whole vocabulary of 49,152 tokens it comes out 1.3e-4 too small, for each token alike.
    """
    logits = logits.astype(mx.float32)
    rows, size = logits.shape
    blocks = logits
    if size % _BLOCKS:
        blocks = mx.pad(logits, [(0, 0), (0, -size % _BLOCKS)], constant_values=-mx.inf)
    sums = mx.logsumexp(blocks.reshape(rows, _BLOCKS, -1), axis=-1)
    return logits - mx.logsumexp(sums, axis=-1, keepdims=True)


__all__ = ["normalised"]
