"""A real inference on something tiny, for ``mlxengine doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxengine import Check, CheckStatus, SelfTestContext


def self_test(context: SelfTestContext) -> Sequence[Check]:  # noqa: ARG001
    """Encode two rows of a tiny BERT with random weights, alone and together, and compare."""
    try:
        import mlx.core as mx

        from ._encoders import build_encoder
        from ._pool import pool

        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        tables = {"vocab_size": 64, "max_position_embeddings": 16, "type_vocab_size": 2}
        encoder = build_encoder({"model_type": "bert", "num_attention_heads": 2, **sizes, **tables})
        encoder.module.eval()
        ids = mx.array([[1, 2, 3, 4], [5, 6, 0, 0]], dtype=mx.int32)
        lengths = mx.array([4, 2], dtype=mx.int32)
        valid = mx.arange(4) < lengths[:, None]
        together = pool(encoder.forward(ids, valid, None), lengths, ("mean",))[1]
        alone = pool(encoder.forward(ids[1:, :2], None, None), lengths[1:], ("mean",))[0]
        difference: Any = mx.max(mx.abs(together - alone)).item()
    except Exception as error:
        return (
            Check(
                name="embedding",
                status=CheckStatus.FAILED,
                detail=f"{type(error).__name__}: {error}",
                remedy='Install "mlxengine[embed]" and a back end of mlx again.',
            ),
        )
    if difference > 1e-2:
        problem = f"a batch changes vectors by {difference:.0e}"
        return (Check(name="embedding", status=CheckStatus.FAILED, detail=problem),)
    return (Check(name="embedding", detail="a tiny encoder runs; a batch changes nothing"),)


__all__ = ["self_test"]
