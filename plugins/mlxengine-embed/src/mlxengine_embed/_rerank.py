"""Cross-encoders: a query and a document in one input, one relevance score out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlxengine import ModelCard
from mlxengine.errors import UnsupportedArchitectureError

Array = Any


def is_reranker(card: ModelCard) -> bool:
    """Whether a repository holds a classifier over an encoder rather than an encoder alone."""
    names = card.config.get("architectures") or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def score_activation(card: ModelCard) -> str:
    """``"sigmoid"`` or ``"identity"``: what turns the logit into a score, by the repository or by default.

    Raises:
        UnsupportedArchitectureError: the repository names another function.
    """
    own = card.documents.get("config_sentence_transformers.json")
    nested = card.config.get("sentence_transformers")
    candidates = (
        own.get("activation_fn") if isinstance(own, Mapping) else None,
        nested.get("activation_fn") if isinstance(nested, Mapping) else None,
        card.config.get("sbert_ce_default_activation_function"),
        "Sigmoid",
    )
    chosen = str(next(item for item in candidates if item)).rpartition(".")[2].lower()
    if chosen not in ("sigmoid", "identity"):
        raise UnsupportedArchitectureError(f"{card.id} scores with {chosen}, which is not supported.")
    return chosen


class BertHead(nn.Module):  # type: ignore[misc]
    """tanh pooler over the first token, then a linear score."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = int(config["hidden_size"])
        self.pooler = _Layers(dense=nn.Linear(size, size))
        self.classifier = nn.Linear(size, 1)

    def __call__(self, hidden: Array, lengths: Array) -> Array:  # noqa: ARG002
        return self.classifier(mx.tanh(self.pooler.dense(hidden[:, 0])))


class RobertaHead(nn.Module):  # type: ignore[misc]
    """The same with RoBERTa's names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = int(config["hidden_size"])
        self.classifier = _Layers(dense=nn.Linear(size, size), out_proj=nn.Linear(size, 1))

    def __call__(self, hidden: Array, lengths: Array) -> Array:  # noqa: ARG002
        return self.classifier.out_proj(mx.tanh(self.classifier.dense(hidden[:, 0])))


class ModernBertHead(nn.Module):  # type: ignore[misc]
    """Pooling by the configuration, a prediction head, then a linear score."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = int(config["hidden_size"])
        if config.get("classifier_activation", "gelu") != "gelu":
            raise UnsupportedArchitectureError("A ModernBERT classifier with another activation than GELU.")
        self.head = _Layers(
            dense=nn.Linear(size, size, bias=bool(config.get("classifier_bias", False))),
            norm=nn.LayerNorm(
                size, eps=float(config.get("norm_eps", 1e-5)), bias=bool(config.get("norm_bias", False))
            ),
        )
        self.classifier = nn.Linear(size, 1)
        self._mean = config.get("classifier_pooling", "cls") == "mean"

    def __call__(self, hidden: Array, lengths: Array) -> Array:
        if self._mean:
            real = (mx.arange(hidden.shape[1]) < lengths[:, None]).astype(hidden.dtype)
            pooled = (real[:, None, :] @ hidden)[:, 0] / mx.maximum(lengths, 1)[:, None]
        else:
            pooled = hidden[:, 0]
        return self.classifier(self.head.norm(nn.gelu(self.head.dense(pooled))))


class _Layers(nn.Module):  # type: ignore[misc]
    """A named group of layers, as checkpoints nest them."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


_HEADS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "bert": BertHead,
    "roberta": RobertaHead,
    "xlm-roberta": RobertaHead,
    "camembert": RobertaHead,
    "modernbert": ModernBertHead,
}


def build_head(config: Mapping[str, Any]) -> Any:
    """The scoring head of an architecture, with weights still to be loaded.

    Raises:
        UnsupportedArchitectureError: none is known, or the model has several labels.
    """
    kind = str(config.get("model_type"))
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and len(labels) != 1:
        raise UnsupportedArchitectureError(
            f"This classifier has {len(labels)} labels; a reranker has one.",
            hint="Choose a cross-encoder that was trained to score relevance.",
        )
    if kind not in _HEADS:
        raise UnsupportedArchitectureError(
            f"Reranking with the architecture {kind!r} is not supported.",
            hint=f"Supported are {', '.join(_HEADS)}.",
        )
    return _HEADS[kind](config)


def rename_head(key: str) -> str | None:
    """The head's name of a checkpoint's tensor, ``None`` for the encoder's own."""
    key = key.removeprefix("bert.")
    return key if key.startswith(("pooler.", "classifier.", "head.")) else None


__all__ = ["build_head", "is_reranker", "rename_head", "score_activation"]
