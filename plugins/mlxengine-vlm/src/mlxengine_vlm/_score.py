"""Scoring texts on the language models of mlx-vlm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import mlx.core as mx
from mlxengine import Event, RunContext, ScoreRequest
from mlxengine.errors import PromptTooLongError
from mlxengine.toolkit import score as toolkit

from ._language import Language
from ._model import VisionModel
from ._prefill import Prefill, embed
from ._processor import tokenizer_of


def score(model: VisionModel, request: ScoreRequest, context: RunContext) -> Iterator[Event | None]:
    """As `mlxengine.toolkit.score.score`."""
    tokenizer = tokenizer_of(model.processor)
    scored = toolkit.Scored(
        name=model.card.id,
        begin=lambda texts: _begin(model, texts),
        encode=lambda texts, then, bounded: _encode(model, texts, then, bounded),
        voice=model.voice,
        adapters=model.adapters,
        trial=model.trial,
        vocabulary=model.vocabulary,
        context=model.context,
        opening=tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        first_piece=model.first_piece,
        media=model.media_tokens,
    )
    return toolkit.score(scored, request, context.budget_ms)


def _encode(
    model: VisionModel, texts: Sequence[str], then: toolkit.Encoded, bounded: bool
) -> Iterator[Event | None]:
    longest, most = max(map(len, texts)), model.most_characters
    if bounded and most is not None and longest > most:
        raise PromptTooLongError(
            f"The text has {longest} characters; {model.card.id} takes {model.context} tokens.",
            hint="Ask for rolling=True to score it in windows.",
        )
    return model.aside.prepared(
        lambda: [model.markers.encode(text, add_special_tokens=True) for text in texts], then
    )


def _begin(model: VisionModel, texts: Sequence[Sequence[int]]) -> toolkit.Read:
    """Reads what comes first as prompts are read, and what follows it as answers are.

    So a text needs no more than what is cut out of it, whatever a network makes of a whole prompt; and where
    that looks in both directions at the tokens of a prompt, they are all but the first an answer's.
    """
    language = Language(model.network)
    layers = language.caches()
    left = [iter(text) for text in texts]
    plans: list[Prefill] = []

    def read(count: int) -> mx.array:
        first = not plans
        if first and language.prefix_lm:
            count = 1
        pieces = [list(islice(text, count)) for text in left]
        if not first:
            return language.follow(mx.array(pieces), layers, plans[0].rope_deltas, plans[0].crossed)
        plans.extend(embed(model.network, model.kind, piece, {}, model.media_tokens) for piece in pieces)
        parts = [plan.take(len(plan.ids)) for plan in plans]
        return language.read(parts, max(map(len, pieces)), layers)

    return read


__all__ = ["score"]
