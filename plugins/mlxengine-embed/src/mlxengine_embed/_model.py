"""A loaded embedding model or reranker: batches of tokens in, vectors or scores out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define, evolve, field
from mlxengine import EmbedRequest, Event

from ._eye import Eye
from ._framing import Framing
from ._m3 import Heads
from ._parts import Encoder
from ._pool import normalize, pool
from ._recipe import Normalize, Recipe
from ._rerank import ACTIVATIONS
from ._splade import Terms
from ._tokenize import Ids, Tokenizer, Tokens

Array = Any


@define(eq=False, kw_only=True)
class EmbeddingModel:
    """An encoder with its recipe.

    Args:
        id: for messages.
        encoder: the encoder, loaded.
        tokenizer: the repository's tokenizer.
        recipe: how hidden vectors become one.
        stages: the functions of ``recipe.stages``, in order.
        dimension: length of a full vector.
        batch_tokens: padded tokens in one step unless the request says otherwise.
        terms: what makes sparse vectors, of a model that makes these.
        readers: tokenizers for single tasks.
        heads: what makes further outputs, of a model that has some.
        unused: tokens that never weigh anything in these.
        words: the vocabulary, as the tokenizer writes it.
        filler: the token that fills up queries.
        skipped: tokens that have no vectors.
        eye: what is in the encoder's place, of a model that sees.
        query_weights: (terms,), of which the sparse vectors of queries are made, where these have no encoder.
    """

    id: str
    encoder: Encoder | None
    tokenizer: Tokenizer
    recipe: Recipe
    stages: tuple[Callable[[Array], Array], ...]
    dimension: int
    batch_tokens: int
    terms: Terms | None = None
    heads: Heads | None = None
    unused: Ids | None = None
    words: Sequence[str] = ()
    readers: Mapping[str, Tokenizer] = field(factory=dict)
    filler: int = 0
    skipped: Ids | None = None
    query_weights: np.ndarray[Any, Any] | None = None
    eye: Eye | None = None

    def reader(self, task: str | None) -> Tokenizer:
        """The tokenizer for a task."""
        return self.readers.get(task or "", self.tokenizer)

    def task(self, request: EmbedRequest) -> str | None:
        """The task of the encoder's that a request names, by a prompt's name or as a side of a search."""
        tasks = self.encoder.tasks if self.encoder is not None else {}
        return next((name for name in (request.prompt_name, request.task) if name in tasks), None)

    def filled(self, tokens: Tokens, task: str | None) -> Tokens:
        """A text's tokens, a query's filled up where the model wants that."""
        late = self.recipe.late
        missing = (late.expansion or 0) - len(tokens.ids) if late is not None and task == "query" else 0
        if late is None or missing <= 0:
            return tokens
        ids = np.concatenate([tokens.ids, np.full(missing, self.filler, dtype=np.int32)])
        return evolve(tokens, ids=ids, unseen=0 if late.attends else missing)

    def kept(self, tokens: Tokens, task: str | None) -> np.ndarray[Any, Any]:
        """Which of a text's tokens have a vector, (tokens,) bool."""
        late = self.recipe.late
        if "tokens" in self.recipe.further:
            return np.arange(len(tokens.ids)).astype(np.bool_)  # all but the first
        if late is None or self.skipped is None or (task or "document") not in late.skip_tasks:
            return np.ones(len(tokens.ids), dtype=np.bool_)
        kept: np.ndarray[Any, Any] = np.isin(tokens.ids, self.skipped, invert=True)
        return kept

    def token_vectors(
        self,
        batch: Sequence[Tokens],
        task: str | None = None,
        *,
        unit: bool | None = None,
        size: int | None = None,
    ) -> Array:
        """One vector a token, (rows, longest, size), fp32; lazy. The arguments are those of `vectors`."""
        if self.eye is not None:
            return self._finished(self.eye.tokens(batch), unit, size)
        hidden = self.hidden(batch, task)[0]
        if "tokens" in self.recipe.further and self.heads is not None:
            return self.heads.vectors(hidden, unit)
        vectors = hidden.astype(mx.float32)
        return vectors if self.recipe.late is None else self._finished(vectors, unit, size)

    def sparse(self, batch: Sequence[Tokens], task: str | None = None) -> Array:
        """A weight for each term, (rows, terms), or with ``heads`` for each token, (rows, longest).

        fp32; lazy but for long batches.
        """
        if self.heads is not None:
            return self.heads.weights(self.hidden(batch, task)[0])
        assert self.terms is not None
        return self.terms.pool(*self.hidden(batch, task))

    def hidden(self, batch: Sequence[Tokens], task: str | None = None) -> tuple[Array, Array]:
        """Hidden vectors (rows, longest, size) of a padded batch, and how many tokens each row has."""
        assert self.encoder is not None
        return run_encoder(self.encoder, batch, task)

    def vectors(
        self,
        batch: Sequence[Tokens],
        task: str | None = None,
        *,
        start: int = 0,
        unit: bool | None = None,
        size: int | None = None,
    ) -> Array:
        """One vector a text, (rows, size), fp32; lazy.

        Args:
            batch: the texts.
            task: one of the encoder's.
            start: leading tokens that are not pooled.
            unit: scale to unit length; ``None`` as the recipe has it.
            size: keep the first dimensions only.
        """
        if self.eye is not None:
            return self._finished(self.eye.vectors(batch), unit, size)
        hidden, lengths = self.hidden(batch, task)
        vectors = pool(hidden, lengths, self.recipe.pooling, start)
        return self._finished(vectors, unit, size)

    def _finished(self, vectors: Array, unit: bool | None, size: int | None) -> Array:
        """Vectors after all stages."""
        last = len(self.stages) - 1
        for index, (stage, function) in enumerate(zip(self.recipe.stages, self.stages, strict=True)):
            if not (unit is False and index == last and isinstance(stage, Normalize)):
                vectors = function(vectors)
        vectors = vectors.astype(mx.float32)
        if size is not None and size < vectors.shape[-1]:
            vectors = vectors[..., :size]
            unit = self.recipe.normalizes if unit is None else unit
        return normalize(vectors) if unit else vectors

    def close(self) -> None:
        """Give up the weights."""
        for tokenizer in (self.tokenizer, *self.readers.values()):
            tokenizer.close()
        self.encoder, self.stages, self.terms, self.heads, self.eye = None, (), None, None, None


@define(eq=False, kw_only=True)
class RankModel:
    """A cross-encoder, or a language model that scores pairs.

    ``activation`` makes scores of the logits; the recipe's prompts stand before queries, or are what
    ``framing`` writes around a pair.
    """

    id: str
    encoder: Encoder | None
    tokenizer: Tokenizer
    head: Any
    activation: str
    labels: int
    recipe: Recipe
    batch_tokens: int
    framing: Framing | None = None

    def encoding(
        self, pairs: Sequence[tuple[str, str]], prompt: str
    ) -> Generator[Event | None, None, list[Tokens]]:
        """Within an iterator of events: the tokens of pairs, with a prompt (empty for none)."""
        if self.framing is not None:
            return (yield from self.framing.encoding(pairs, prompt))
        # As for sentence-transformers, it stands before the first text of each pair.
        return (yield from self.tokenizer.encoding([(prompt + left, right) for left, right in pairs]))

    def scores(self, batch: Sequence[Tokens], activation: str | None = None) -> Array:
        """The scores of pairs, (rows, labels), fp32; lazy.

        Args:
            batch: the pairs.
            activation: one of `_rerank.ACTIVATIONS` instead of the model's own.
        """
        assert self.encoder is not None
        hidden, lengths = run_encoder(self.encoder, batch)
        logits = self.head(hidden, lengths).astype(mx.float32)
        return ACTIVATIONS[activation or self.activation](logits)

    def close(self) -> None:
        """Give up the weights."""
        self.tokenizer.close()
        if self.framing is not None:
            self.framing.close()
        self.encoder, self.head = None, None


def run_encoder(encoder: Encoder, batch: Sequence[Tokens], task: str | None = None) -> tuple[Array, Array]:
    """Pad a batch on the right, whatever side its tokenizer prefers, and encode it.

    A text without any token gets one padding token, so that attention has something to look at; its length
    stays 0 and pooling gives zeros.
    """
    lengths = [len(tokens.ids) for tokens in batch]
    longest = max(1, *lengths)
    ids: np.ndarray[Any, Any] = np.full((len(batch), longest), encoder.pad, dtype=np.int32)
    types = np.zeros_like(ids) if encoder.types and any(t.types is not None for t in batch) else None
    for row, tokens in enumerate(batch):
        ids[row, : lengths[row]] = tokens.ids
        if types is not None and tokens.types is not None:
            types[row, : lengths[row]] = tokens.types
    looked_at = [max(1, len(tokens.ids) - tokens.unseen) for tokens in batch]
    seen = mx.array(looked_at, dtype=mx.int32)
    valid = None if min(looked_at) == longest else mx.arange(longest) < seen[:, None]
    which = (encoder.tasks.get(task or ""),) if encoder.tasks else ()
    hidden = encoder.forward(mx.array(ids), valid, None if types is None else mx.array(types), *which)
    return hidden, mx.array(lengths, dtype=mx.int32)


__all__ = ["EmbeddingModel", "RankModel", "run_encoder"]
