"""Scoring texts on mlx-lm's networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import mlx.core as mx
from mlxengine import Event, RunContext, ScoreRequest
from mlxengine.toolkit import score as toolkit
from mlxengine.toolkit.joining import matrix

from ._model import LanguageModel


def score(model: LanguageModel, request: ScoreRequest, context: RunContext) -> Iterator[Event | None]:
    """As `mlxengine.toolkit.score.score`."""
    tokenizer = model.tokenizer
    scored = toolkit.Scored(
        name=model.card.id,
        begin=lambda texts: _begin(model, texts),
        encode=lambda texts, then, bounded: model.prompts.encoded(texts, then, bounded=bounded),
        voice=model.voice,
        adapters=model.adapters,
        trial=model.trial,
        vocabulary=model.vocabulary,
        context=model.context,
        opening=tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        first_piece=model.first_piece,
        alone=model.serving.serial,
    )
    return toolkit.score(scored, request, context.budget_ms)


def _begin(model: LanguageModel, texts: Sequence[Sequence[int]]) -> toolkit.Read:
    from mlx_lm.models.cache import make_prompt_cache

    layers = make_prompt_cache(model.network)
    left = [iter(text) for text in texts]

    def read(count: int) -> mx.array:
        pieces = [list(islice(text, count)) for text in left]
        logits: mx.array = model.network(matrix(pieces, max(map(len, pieces))), cache=layers)
        return logits

    return read


__all__ = ["score"]
