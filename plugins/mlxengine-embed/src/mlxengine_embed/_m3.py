"""BGE-M3's two outputs beside its dense vector, each by one layer over the encoder's hidden vectors.

Chen et al., "M3-Embedding" (2024), section 3.2: a token weighs relu(w h + b), of one that is there several
times the greatest counts; and a token's vector is W h + b, scaled to unit length, of all but the first one.
GTE's sparse vectors (Zhang et al., "mGTE", 2024) are made in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ._parts import Array
from ._pool import normalize
from ._recipe import M3_FILES
from ._weights import fill, read_file

Host = np.ndarray[Any, Any]


class Heads(nn.Module):  # type: ignore[misc]
    """The layers that a repository has.

    Args:
        folder: where their files are.
        outputs: which of `M3_FILES`.
        size: width of the hidden vectors.
        weights: the encoder's, which hold the layer of a model that has no file for it (GTE).

    Raises:
        IncompatibleWeightsError: a file cannot be read, or holds something else.
    """

    def __init__(self, folder: Path, outputs: Sequence[str], size: int, weights: Mapping[str, Array]) -> None:
        super().__init__()
        for output in outputs:
            file = M3_FILES[output]
            if (folder / file).is_file():
                stored = read_file(folder / file)
            else:
                stored = {name: weights[f"classifier.{name}"] for name in ("weight", "bias")}
            layer = nn.Linear(size, len(stored.get("weight", ())))
            fill(layer, stored, lambda key: key, None, file)
            setattr(self, file.partition(".")[0], layer)

    def weights(self, hidden: Array) -> Array:
        """How much each token weighs, (rows, length)."""
        return mx.maximum(self.sparse_linear(hidden)[..., 0], 0).astype(mx.float32)

    def vectors(self, hidden: Array, unit: bool | None) -> Array:
        """A vector for each token, (rows, length, size)."""
        found = self.colbert_linear(hidden).astype(mx.float32)
        return found if unit is False else normalize(found)


def lexical(weights: Host, ids: Host, unused: Host) -> tuple[Host, Host]:
    """The tokens of one text that weigh something, ascending, and the greatest weight of each.

    Args:
        weights: (tokens,) float32.
        ids: (tokens,) int32.
        unused: the tokens that never count.
    """
    counts = (weights > 0) & np.isin(ids, unused, invert=True)
    terms, places = np.unique(ids[counts], return_inverse=True)
    greatest: Host = np.zeros(len(terms), dtype=np.float32)
    np.maximum.at(greatest, places, weights[counts])
    return terms, greatest


__all__ = ["Heads", "lexical"]
