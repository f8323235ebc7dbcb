"""Which encoder architectures can be served, and what serves each. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

LIBRARIES: Mapping[str, str] = {
    "bert": "mlx_embeddings.models.bert",
    "roberta": "mlx_embeddings.models.xlm_roberta",
    "xlm-roberta": "mlx_embeddings.models.xlm_roberta",
    "camembert": "mlx_embeddings.models.xlm_roberta",
    "modernbert": "mlx_embeddings.models.modernbert",
    "qwen3": "mlx_embeddings.models.qwen3",
    "gemma3_text": "mlx_embeddings.models.gemma3_text",
}
"""The module that serves an architecture; the parity tests hold every row to the reference."""

DECODERS = ("qwen3", "gemma3_text")
"""Those of `LIBRARIES` that also make language models: without further signs, a model of these is one."""
ENCODERS = tuple(name for name in LIBRARIES if name not in DECODERS)

__all__ = ["DECODERS", "ENCODERS", "LIBRARIES"]
