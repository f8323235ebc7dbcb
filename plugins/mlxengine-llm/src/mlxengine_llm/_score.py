"""How probable a text is to the model, computed a piece at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlxengine import Event, Finished, Metrics, RunContext, ScoreRequest, TextScore, TokenUsage
from mlxengine.errors import InvalidParameterError, PromptTooLongError
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.rows import Stepped

from ._model import LanguageModel

_LOGITS = 1 << 28  # bytes that the logits of a piece may take, in fp32


def score(model: LanguageModel, request: ScoreRequest, context: RunContext) -> Iterator[Event | None]:
    """Check the request and start.

    Raises:
        InvalidParameterError: the text has fewer than two tokens, or a token id is not in the vocabulary.
        PromptTooLongError: it does not fit in the context.
    """

    def start(tokens: list[int]) -> Iterator[Event | None]:
        _check(model, tokens)
        return _pieces(model, tokens, context.budget_ms, model.adapters.resolve(request.adapter))

    if request.text is not None:
        return model.prompts.encoded(request.text, start)
    return start(list(request.tokens or ()))


def _check(model: LanguageModel, tokens: list[int]) -> None:
    if len(tokens) < 2:
        raise InvalidParameterError(
            f"A text of {len(tokens)} tokens cannot be scored: the first is only context.",
            hint="Give a longer text.",
        )
    if model.context is not None and len(tokens) > model.context:
        raise PromptTooLongError(
            f"The text has {len(tokens)} tokens; {model.card.id} takes {model.context}.",
            hint="Score it in pieces.",
        )
    size = model.vocabulary
    if not 0 <= min(tokens) <= max(tokens) < size:
        raise InvalidParameterError(f"The vocabulary of {model.card.id} has {size} tokens.")


def _pieces(
    model: LanguageModel, tokens: list[int], budget_ms: float, adapter: str | None
) -> Iterator[Event | None]:
    from mlx_lm.models.cache import make_prompt_cache

    start = time.perf_counter()
    cache = make_prompt_cache(model.network)
    pace = Pace(first=model.first_piece)
    most = max(_LOGITS // (4 * model.vocabulary), 1)
    found: list[float] = []
    while len(found) < len(tokens) - 1:
        began = time.perf_counter()
        at = len(found)
        piece = tokens[at : min(at + min(pace.tokens(budget_ms), most), len(tokens) - 1)]
        model.adapters.use(adapter)
        logits = model.network(mx.array([piece]), cache=cache)[0].astype(mx.float32)
        wanted = mx.array(tokens[at + 1 : at + 1 + len(piece)])
        picked = mx.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        values: Any = (picked - mx.logsumexp(logits, axis=-1)).tolist()
        found.extend(values)
        pace.observe(Stepped(prompt_tokens=len(piece)), time.perf_counter() - began)
        yield None
    yield TextScore(token_ids=tuple(tokens[1:]), logprobs=tuple(found))
    yield Finished(
        usage=TokenUsage(prompt_tokens=len(tokens)),
        metrics=Metrics(
            prompt_per_second=len(tokens) / (time.perf_counter() - start),
            peak_memory_bytes=mx.get_peak_memory(),
        ),
    )


__all__ = ["score"]
