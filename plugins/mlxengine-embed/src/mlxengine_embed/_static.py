"""Static embeddings: one vector a token from a table, and nothing that depends on its neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlxengine.errors import IncompatibleWeightsError

from ._parts import Array, Encoder, renamed


def build(weights: Mapping[str, Array], name: str) -> Encoder:
    """The encoder of a checkpoint, whose tensors say how large it is.

    sentence-transformers keeps the table as ``embedding.weight``, model2vec as ``embeddings``; where that has
    fewer rows than there are tokens, ``mapping`` has each token's row. ``weights`` has each token's factor.

    Raises:
        IncompatibleWeightsError: there is no table.
    """
    table = weights.get("embedding.weight", weights.get("embeddings"))
    if table is None:
        raise IncompatibleWeightsError(
            f"{name} has no table of vectors, but {', '.join(sorted(weights)) or 'nothing'}.",
            hint="A static embedding has embedding.weight or embeddings.",
        )
    tokens = len(weights.get("mapping", table))
    module = nn.Embedding(tokens, table.shape[1])
    return Encoder(
        module=module,
        forward=lambda ids, _valid, _types: module(ids),
        rename=renamed((), "^$"),
        prepare=_folded,
        hidden_size=table.shape[1],
        positions=None,
        pad=0,
        library="mlxengine_embed._static",
    )


def _folded(weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """One row for each token."""
    if "embedding.weight" in weights:
        return {"weight": weights["embedding.weight"]}
    table = weights["embeddings"]
    if "mapping" in weights:
        table = table[weights["mapping"].astype(mx.int32)]
    if "weights" in weights:
        table = table.astype(mx.float32) * weights["weights"].astype(mx.float32)[:, None]
    return {"weight": table}


__all__ = ["build"]
