"""Sparse vectors: how much each term of the vocabulary says of a text, by a masked language model.

SPLADE (Formal et al. 2021) takes, for each term, the greatest of log(1 + relu(logit)) over a text's tokens;
its first form takes their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from attrs import frozen
from mlxengine.errors import IncompatibleWeightsError

from ._architectures import MASKED_HEADS
from ._parts import Array, Config, Encoder, activation
from ._recipe import Splade
from ._weights import fill

CELLS = 1 << 25
"""Logits that are held at once: a batch's tokens by the vocabulary would be gigabytes."""


@frozen(kw_only=True)
class _Names:
    """What a checkpoint calls the parts of the head."""

    dense: str
    norm: str
    decoder: str
    bias: str


_NAMES: Mapping[str, _Names] = {
    "cls": _Names(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder.weight",
        bias="cls.predictions.bias",
    ),
    "vocab": _Names(
        dense="vocab_transform",
        norm="vocab_layer_norm",
        decoder="vocab_projector.weight",
        bias="vocab_projector.bias",
    ),
    "lm_head": _Names(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder.weight",
        bias="lm_head.bias",
    ),
    "head": _Names(dense="head.dense", norm="head.norm", decoder="decoder.weight", bias="decoder.bias"),
}


class MaskedHead(nn.Module):  # type: ignore[misc]
    """Hidden vectors to logits of the vocabulary.

    Args:
        config: the encoder's.
        size: width of the hidden vectors.
        decode: the product with the vocabulary's vectors.
        terms: how many there are.
    """

    def __init__(self, config: Config, size: int, decode: Callable[[Array], Array], terms: int) -> None:
        super().__init__()
        modern = config["model_type"] == "modernbert"
        eps = float(config.get("norm_eps" if modern else "layer_norm_eps", 1e-5 if modern else 1e-12))
        self.dense = nn.Linear(size, size, bias=bool(config.get("classifier_bias", False)) or not modern)
        self.norm = nn.LayerNorm(size, eps=eps, bias=bool(config.get("norm_bias", False)) or not modern)
        self.bias = mx.zeros((terms,))
        names = {"distilbert": "activation", "modernbert": "classifier_activation", "bert": "hidden_act"}
        self._act = activation(config.get(names.get(str(config["model_type"]), ""), "gelu"))
        self._decode = decode

    def __call__(self, hidden: Array) -> Array:
        return self._decode(self.norm(self._act(self.dense(hidden)))) + self.bias


@frozen(kw_only=True)
class Terms:
    """What makes sparse vectors of hidden ones.

    Args:
        head: the logits.
        recipe: how they are pooled.
        count: how many terms there are.
        words: them, as the tokenizer writes them.
    """

    head: MaskedHead
    recipe: Splade
    count: int
    words: Sequence[str]

    def pool(self, hidden: Array, lengths: Array) -> Array:
        """(rows, terms), fp32, of right-padded hidden vectors (rows, length, size); lazy."""
        rows, length, _ = hidden.shape
        width = max(1, CELLS // (rows * self.count))
        valid = mx.arange(length) < lengths[:, None]
        found = mx.zeros((rows, self.count))
        for start in range(0, length, width):
            logits = self.head(hidden[:, start : start + width]).astype(mx.float32)
            logits = mx.where(valid[:, start : start + width, None], mx.maximum(logits, 0), 0)
            # The logarithm grows, so the greatest can be taken first.
            found = (
                mx.maximum(found, mx.max(logits, axis=1))
                if self.recipe.greatest
                else found + mx.sum(self._log(logits), axis=1)
            )
            if width < length:
                mx.eval(found)
        return self._log(found) if self.recipe.greatest else found

    def _log(self, values: Array) -> Array:
        values = mx.log1p(values)
        return mx.log1p(values) if self.recipe.twice else values


def static_terms(weights: Mapping[str, Array], count: int, name: str) -> np.ndarray[Any, Any]:
    """The weight of each token where queries have no encoder, float32 (count,).

    Raises:
        IncompatibleWeightsError: there is not one for each term of the documents.
    """
    found = weights.get("weight")
    if found is None or tuple(found.shape) != (count,):
        raise IncompatibleWeightsError(
            f"The weights of query tokens of {name} are not one for each of its {count} terms.",
            hint="The repository is incomplete.",
        )
    values: np.ndarray[Any, Any] = np.array(found.astype(mx.float32))
    return values


def build_terms(
    recipe: Splade,
    config: Config,
    encoder: Encoder,
    weights: Mapping[str, Array],
    words: Sequence[str],
    name: str,
) -> Terms:
    """The head of a masked language model with its weights.

    Args:
        recipe: how logits are pooled.
        config: the normalised ``config.json``.
        encoder: loaded; its word embeddings are the decoder where the checkpoint ties the two.
        weights: the checkpoint's tensors.
        words: the tokenizer's.
        name: for messages.

    Raises:
        IncompatibleWeightsError: the checkpoint has no such head.
    """
    names = _NAMES[MASKED_HEADS[str(config["model_type"])]]
    embeddings = encoder.module.embeddings
    table = embeddings.tok_embeddings if "tok_embeddings" in embeddings else embeddings.word_embeddings
    count, decode = int(config["vocab_size"]), table.as_linear
    apart = config.get("tie_word_embeddings") is False and names.decoder in weights
    if apart:
        own = weights[names.decoder]
        decode = lambda hidden: hidden @ own.T  # noqa: E731
    head = MaskedHead(config, encoder.hidden_size, decode, count)
    kept = {
        f"{old}.{kind}": f"{new}.{kind}"
        for old, new in ((names.dense, "dense"), (names.norm, "norm"))
        for kind in ("weight", "bias", "scales", "biases")
    }
    # The decoder's bias is the head's, tied to it under either name.
    own_bias = f"{names.decoder.removesuffix('.weight')}.bias"
    kept[own_bias if own_bias in weights and (apart or names.bias not in weights) else names.bias] = "bias"
    if not any(key in weights for key in kept):
        raise IncompatibleWeightsError(
            f"{name} makes sparse vectors, but its weights have no head of a masked language model.",
            hint="The repository is incomplete.",
        )
    fill(head, weights, kept.get, config.get("quantization"), f"the head of {name}")
    return Terms(head=head, recipe=recipe, count=count, words=words)


__all__ = ["CELLS", "Terms", "build_terms", "static_terms"]
