"""Cross-encoders: two texts in one input, one score for each label out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlxengine import ModelCard
from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError

from ._architectures import HEADS
from ._parts import Array, Config, Group, activation
from ._weights import fill

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
    "softmax": lambda x: mx.softmax(x, axis=-1),
}


def is_reranker(card: ModelCard) -> bool:
    """Whether a repository holds a classifier over an encoder rather than an encoder alone."""
    names = card.config.get("architectures") or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def score_activation(card: ModelCard, labels: int, default: str | None = None) -> str:
    """One of `ACTIVATIONS`: what turns logits into scores, by the repository or by default.

    Args:
        card: the model.
        labels: how many scores a pair has.
        default: instead of sentence-transformers' own, a sigmoid for one label.

    Raises:
        UnsupportedArchitectureError: the repository names another function.
    """
    # sentence-transformers reads its own file of repositories that list their modules only.
    own = (
        card.documents.get("config_sentence_transformers.json") if "modules.json" in card.documents else None
    )
    nested = card.config.get("sentence_transformers")
    candidates = (
        own.get("activation_fn") if isinstance(own, Mapping) else None,
        nested.get("activation_fn") if isinstance(nested, Mapping) else None,
        card.config.get("sbert_ce_default_activation_function"),
        default or ("Sigmoid" if labels == 1 else "Identity"),
    )
    chosen = str(next(item for item in candidates if item)).rpartition(".")[2].lower()
    if chosen not in ACTIVATIONS:
        raise UnsupportedArchitectureError(
            f"{card.id} makes its scores with {chosen}, which is not supported.",
            hint=f"Supported are {', '.join(ACTIVATIONS)}.",
        )
    return chosen


class Head(nn.Module):  # type: ignore[misc]
    """What stands between an encoder's hidden vectors and the logits; named as the checkpoints name it.

    Args:
        config: the encoder's.
        size: width of the hidden vectors.
        labels: how many logits there are.
    """

    def __init__(self, config: Config, size: int, labels: int) -> None:
        super().__init__()
        kind = str(config["model_type"])
        self._style, self._pooling = HEADS[kind], "cls"
        self._act: Callable[[Array], Array] = mx.tanh
        dense, last = nn.Linear(size, size), nn.Linear(size, labels)
        if self._style == "pooler":
            self.pooler, self.classifier = Group(dense=dense), last
            if kind.startswith("deberta"):
                self._act = activation(config.get("pooler_hidden_act", "gelu"))
        elif self._style == "bare pooler":
            self.pooler, self.classifier = dense, last
        elif self._style == "classifier":
            self.classifier = Group(dense=dense, out_proj=last)
            self._act = nn.gelu if kind == "electra" else mx.tanh
        elif self._style == "pre_classifier":
            self.pre_classifier, self.classifier, self._act = dense, last, nn.relu
        elif self._style == "last token":
            self.score = nn.Linear(size, labels, bias=False)
        elif self._style == "dense":
            self.dense, self.classifier, self._act = dense, last, nn.gelu
            self._pooling = str(config.get("classifier_pooling", "late"))
        else:
            self._act = activation(config.get("classifier_activation", "gelu"))
            self._pooling = str(config.get("classifier_pooling", "cls"))
            self.head, self.classifier = _prediction_head(config, size), last
        if self._pooling not in ("cls", "bos", "mean", "late"):
            raise UnsupportedArchitectureError(f"classifier_pooling={self._pooling!r} is not supported.")

    def __call__(self, hidden: Array, lengths: Array) -> Array:
        if self._style == "last token":
            return self.score(hidden[mx.arange(hidden.shape[0]), mx.maximum(lengths - 1, 0)])
        pooled = _mean(hidden, lengths) if self._pooling == "mean" else hidden[:, 0]
        if self._style == "pooler":
            return self.classifier(self._act(self.pooler.dense(pooled)))
        if self._style == "bare pooler":
            return self.classifier(self._act(self.pooler(pooled)))
        if self._style == "classifier":
            return self.classifier.out_proj(self._act(self.classifier.dense(pooled)))
        if self._style == "pre_classifier":
            return self.classifier(self._act(self.pre_classifier(pooled)))
        if self._style == "dense":
            if self._pooling == "late":
                return _mean(self.classifier(self._act(self.dense(hidden))), lengths)
            return self.classifier(self._act(self.dense(pooled)))
        return self.classifier(self.head.norm(self._act(self.head.dense(pooled))))


class WordHead(nn.Module):  # type: ignore[misc]
    """The logit of one word at the last place, less that of another.

    Args:
        size: width of the hidden vectors.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.score = nn.Linear(size, 1, bias=False)

    def __call__(self, hidden: Array, lengths: Array) -> Array:
        return self.score(hidden[mx.arange(hidden.shape[0]), mx.maximum(lengths - 1, 0)])


def build_word_head(
    module: Any,
    config: Config,
    weights: Mapping[str, Array],
    words: tuple[int, int | None],
    name: str,
) -> WordHead:
    """The head of a language model for two of its words, as token ids; the second may be missing.

    Args:
        module: the loaded decoder; its embeddings are the head where the checkpoint ties the two.
        config: its configuration.
        weights: the checkpoint's tensors.
        name: for messages.

    Raises:
        IncompatibleWeightsError: a word is no token of the model.
    """
    count, size = int(config["vocab_size"]), int(config["hidden_size"])
    if not all(0 <= word < count for word in words if word is not None):
        raise IncompatibleWeightsError(
            f"{name} makes its scores of the tokens {words}, but has {count} tokens."
        )
    table = module.embed_tokens
    if any(key.startswith("lm_head.") for key in weights):
        # A table that is looked up is unpacked where the checkpoint is quantized.
        own = Group(lm_head=nn.Embedding(count, size))
        settings = config.get("quantization") or config.get("quantization_config")
        fill(own, weights, lambda key: key if key.startswith("lm_head.") else None, settings, name)
        table = own.lm_head
    rows = table(mx.array([word for word in words if word is not None])).astype(mx.float32)
    head = WordHead(size)
    head.score.weight = rows[:1] - rows[1:] if len(rows) > 1 else rows
    return head


def _prediction_head(config: Config, size: int) -> Group:
    eps, bias = float(config.get("norm_eps", 1e-5)), bool(config.get("norm_bias", False))
    return Group(
        dense=nn.Linear(size, size, bias=bool(config.get("classifier_bias", False))),
        norm=nn.LayerNorm(size, eps=eps, bias=bias),
    )


def _mean(values: Array, lengths: Array) -> Array:
    real = (mx.arange(values.shape[1]) < lengths[:, None]).astype(values.dtype)
    return (real[:, None, :] @ values)[:, 0] / mx.maximum(lengths, 1)[:, None]


def build_head(config: Config, size: int, weights: Mapping[str, Array], name: str) -> tuple[Head, int]:
    """The scoring head of an architecture, with weights still to be loaded, and its number of labels.

    Raises:
        UnsupportedArchitectureError: none is known.
        IncompatibleWeightsError: the checkpoint has no such head.
    """
    kind = str(config.get("model_type"))
    if kind not in HEADS:
        raise UnsupportedArchitectureError(
            f"Reranking with the architecture {kind!r} is not supported.",
            hint=f"Supported are {', '.join(HEADS)}.",
        )
    last = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
    found = {new: value for key, value in weights.items() if (new := rename_head(key)) in last}
    if not found:
        raise IncompatibleWeightsError(
            f"{name} says that it is a classifier, but its weights have no head.",
            hint="Choose the repository of the trained cross-encoder.",
        )
    labels = int(next(iter(found.values())).shape[0])
    return Head(config, size, labels), labels


def label_names(config: Config, labels: int) -> Sequence[str]:
    """The names of the labels in their order; none where the configuration names another number of them."""
    names = config.get("id2label")
    if not isinstance(names, Mapping) or len(names) != labels or labels == 1:
        return ()
    return [str(names[key]) for key in sorted(names, key=int)]


_PREFIXES = ("bert.", "nomic_bert.", "new.", "gte.", "deberta.", "ernie.", "albert.", "model.")
_PARTS = ("pooler.", "classifier.", "head.", "pre_classifier.", "score.", "dense.")


def rename_head(key: str) -> str | None:
    """The head's name of a checkpoint's tensor, ``None`` for the encoder's own."""
    inside = next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
    return inside if inside.startswith(_PARTS) else None


__all__ = [
    "ACTIVATIONS",
    "build_head",
    "build_word_head",
    "is_reranker",
    "label_names",
    "rename_head",
    "score_activation",
]
