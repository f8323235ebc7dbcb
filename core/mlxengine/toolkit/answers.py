"""From tokens to events: an answer to a text request is a row of the shared batch that makes its events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

import attrs
import mlx.core as mx
import numpy as np
from attrs import field, frozen

from ..contract.events import Event, Finished, FinishReason, Metrics
from ..contract.hookspecs import RunContext
from ..contract.tokens import TokenUsage
from ..errors import GenerationError, InvalidParameterError, MLXEngineError, UnsupportedInputError
from ..text.outputs import ReasoningDelta, TextDelta, TokenLogprob, TopLogprob
from ..text.params import GenerateParams
from .detokenize import Detokenizer, StopTexts
from .grammar import GrammarRow, Grammars
from .rows import Row, SharedBatch
from .sampling import PenaltySettings, SamplerSettings, SeededSampler, processors_for, sampler_for
from .token_bytes import TokenBytes

MAX_TOKENS = 4096
"""Most tokens of an answer where neither the request, the model nor a known context bounds it."""


@frozen(kw_only=True)
class Voice:
    """What the answers of one model have in common.

    Args:
        decode: token ids to text, without any clean-up of spaces.
        defaults: ``generation_config.json``.
        stop_ids: token ids that end an answer.
        context: longest context in tokens, or ``None``.
        grammars: compiles what an answer must look like; ``None`` where that is not supported.
        spelling: what bytes a token stands for.
    """

    decode: Callable[[Sequence[int]], str]
    defaults: Mapping[str, Any] = field(factory=dict)
    stop_ids: frozenset[int] = frozenset()
    context: int | None = None
    grammars: Grammars | None = None
    spelling: TokenBytes = field(factory=TokenBytes)

    def scored(
        self, token: int, logprob: float, best: Sequence[tuple[int, float]] = (), *, first: bool = False
    ) -> TokenLogprob:
        """A token, which is the ``first`` of its text or not, with the best alternatives and theirs."""
        top = tuple(
            TopLogprob(token_id=item, logprob=value, **self._named(item, first)) for item, value in best
        )
        return TokenLogprob(token_id=token, logprob=logprob, top=top, **self._named(token, first))

    def _named(self, token: int, first: bool) -> dict[str, Any]:
        spelled = self.spelling(token, first=first)
        text = self.decode([token]) if spelled is None else spelled.decode(errors="replace")
        return {"text": text, "bytes": spelled}


def sampler_settings(params: GenerateParams, defaults: Mapping[str, Any]) -> SamplerSettings:
    """The request's sampling, then the model's own (``generation_config.json``), then greedy."""
    own = defaults if defaults.get("do_sample") else {}

    def choose(value: float | None, key: str, otherwise: float) -> float:
        found = own.get(key) if value is None else value
        return otherwise if found is None else found

    return SamplerSettings(
        temperature=float(choose(params.temperature, "temperature", 1.0 if own else 0.0)),
        top_p=float(choose(params.top_p, "top_p", 1.0)),
        top_k=int(choose(params.top_k, "top_k", 0)),
        min_p=float(choose(params.min_p, "min_p", 0.0)),
    )


def penalty_settings(params: GenerateParams, defaults: Mapping[str, Any]) -> PenaltySettings:
    """The request's penalties; the model's own repetition penalty where it says nothing.

    A request with ``temperature=0`` means the most probable token, which a penalty that it does not name
    must not change.
    """
    repetition = params.repetition_penalty
    if repetition is None and params.temperature != 0:
        repetition = defaults.get("repetition_penalty")
    return PenaltySettings(
        repetition=float(1.0 if repetition is None else repetition),
        repetition_context=params.repetition_context_size or 20,
        presence=params.presence_penalty or 0.0,
        frequency=params.frequency_penalty or 0.0,
        bias=params.logit_bias or (),
    )


def stop_texts(params: GenerateParams, defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """The request's stop texts, and the model's own ``stop_strings``, which go with its end tokens."""
    own = defaults.get("stop_strings")
    found = [own] if isinstance(own, str) else own if isinstance(own, Sequence) else ()
    return (
        *params.stop,
        *([] if params.ignore_eos else [item for item in found if item and isinstance(item, str)]),
    )


def token_limit(
    params: GenerateParams, defaults: Mapping[str, Any], prompt_length: int, context: int | None
) -> tuple[int, FinishReason]:
    """Most tokens of an answer, and what its end there is called.

    The request's ``max_tokens``, else the model's ``max_new_tokens`` and ``max_length`` (of prompt and answer
    together; one token may always come), else what the context leaves; without a known one, `MAX_TOKENS`.
    """
    left = None if context is None else context - prompt_length
    bounds = [] if params.max_tokens is None else [params.max_tokens]
    if not bounds:
        own, longest = defaults.get("max_new_tokens"), defaults.get("max_length")
        bounds += [own] if isinstance(own, int) and own > 0 else []
        bounds += [max(1, longest - prompt_length)] if isinstance(longest, int) else []
    if left is None:
        return min(bounds, default=MAX_TOKENS), FinishReason.LENGTH
    if not bounds or left < min(bounds):
        return left, FinishReason.CONTEXT
    return min(bounds), FinishReason.LENGTH


class Router(Protocol):
    """Parts an answer's text into `TextDelta`, `ReasoningDelta` and `ToolCall` events."""

    calls: int
    broken: bool

    def feed(self, text: str) -> list[Event]:
        """The events of the next piece of text."""

    def finish(self) -> list[Event]:
        """The events of what was held back."""


class Answer(Row):
    """A row that turns its tokens into events, ready for the reader."""

    def __init__(
        self,
        voice: Voice,
        prompt: Sequence[int],
        params: GenerateParams,
        *,
        streaming: bool = True,
        priority: int = 0,
        index: int = 0,
    ) -> None:
        if params.adapter is not None:
            raise UnsupportedInputError(
                f"This model has no adapters; {params.adapter!r} was asked for.",
                hint="Leave params.adapter out.",
            )
        if params.n != 1:
            raise UnsupportedInputError(
                f"This model gives one answer to a request, {params.n} were asked for.",
                hint="Send several requests.",
            )
        settings = sampler_settings(params, voice.defaults)
        processors = processors_for(penalty_settings(params, voice.defaults), len(prompt))
        self.grammar = _grammar(voice, params, len(prompt))
        if self.grammar is not None:
            processors.append(self.grammar)  # last: nothing may bring back what it rules out
        seeded = params.seed is not None and settings.temperature > 0
        super().__init__(
            prompt,
            sampler=SeededSampler(settings, params.seed or 0) if seeded else sampler_for(settings),
            processors=processors,
            priority=priority,
        )
        self.index = index
        self.reuse = True
        self.measured: tuple[tuple[str, float], ...] = ()  # what the decoder adds to the metrics
        self.router: Router | None = None  # parts the text into text, reasoning and tool calls
        self.events: deque[Event] = deque()
        self._streaming = streaming
        self._voice = voice
        self._detokenizer = Detokenizer(voice.decode)
        self._stops = StopTexts(stop_texts(params, voice.defaults))
        self._stop_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else voice.stop_ids
        )
        self._limit, self._bound = token_limit(params, voice.defaults, len(prompt), voice.context)
        self.scored = params.logprobs or params.top_logprobs > 0
        self._top = params.top_logprobs
        self._text: list[str] = []
        self._parted: list[Event] = []  # what the router gave, while nothing is to be said before the end
        self._reasoned = 0
        self._ids: list[int] = []
        self._scores: list[TokenLogprob] = []
        self._start = time.perf_counter()
        self._first: float | None = None

    @property
    def longest(self) -> int:
        """Tokens of the prompt and of the longest answer that may come."""
        return len(self.prompt) + self._limit

    @property
    def usage(self) -> TokenUsage:
        """What was used so far; of a prompt that is read in pieces, those that were read."""
        begun = bool(self.tokens) or not self.reading
        return TokenUsage(
            prompt_tokens=len(self.prompt) if begun else self.read,
            completion_tokens=len(self.tokens),
            cached_tokens=self.cached if begun else min(self.cached, self.read),
            reasoning_tokens=self._reasoned,
        )

    @property
    def unread(self) -> int:
        return len(self.events)

    def ready(self) -> bool:
        return self.grammar is None or self.grammar.ready()

    def take(self, token: int, logprobs: mx.array | None) -> None:
        if self._first is None:
            self._first = time.perf_counter()
        if token in self._stop_ids:
            self._finish(FinishReason.STOP, token)
            return
        self._ids.append(token)
        if self.scored and logprobs is not None:
            self._scores.append(self._score(token, logprobs))
        text, stop = self._stops.feed(self._detokenizer.add(token))
        self._say(text)
        if stop is not None:
            self._finish(FinishReason.STOP, stop)
        elif len(self.tokens) >= self._limit:
            self._finish(self._bound)

    def _say(self, text: str, *, last: bool = False) -> None:
        if self.router is not None:
            self._part(self.router, text, last=last)
            return
        self._text.append(text)
        if (text and self._streaming) or (last and (self._ids or any(self._text))):
            text, self._text = "".join(self._text), []
            self.events.append(self._delta(text))

    def _part(self, router: Router, text: str, *, last: bool) -> None:
        """Say a piece as what the router makes of it, each token with the part that it belongs to."""
        spoken = router.feed(text) if text else []
        if last:
            spoken += router.finish()
            if (self._ids or self._scores) and not any(isinstance(item, TextDelta) for item in spoken):
                spoken.append(TextDelta(text="", index=self.index))
        self._parted.extend(self._with_tokens(item) for item in spoken)
        if last or self._streaming:
            self.events.extend(self._parted if self._streaming else _joined(self._parted))
            self._parted.clear()

    def _delta(self, text: str) -> TextDelta:
        """Text with the tokens since the last piece, and their log-probabilities."""
        ids, self._ids = tuple(self._ids), []
        scores, self._scores = tuple(self._scores), []
        return TextDelta(text=text, token_ids=ids, logprobs=scores, index=self.index)

    def _with_tokens(self, event: Event) -> Event:
        """The event with the tokens since the last one; log-probabilities go with text only."""
        if isinstance(event, TextDelta):
            return self._delta(event.text)
        if not isinstance(event, ReasoningDelta):
            return event
        ids, self._ids = tuple(self._ids), []
        self._reasoned += len(ids)
        return attrs.evolve(event, token_ids=ids)

    def _finish(self, reason: FinishReason, stop: str | int | None = None) -> None:
        if not isinstance(stop, str):  # a stop text cut the answer; otherwise nothing may be held back
            text, late = self._stops.feed(self._detokenizer.finish())
            if late is None:
                text += self._stops.finish()
            else:
                reason, stop = FinishReason.STOP, late
            self._say(text, last=True)
        else:
            self._say("", last=True)
        if self.router is not None and self.router.calls and reason is FinishReason.STOP:
            cut = isinstance(stop, str) and self.router.broken
            reason = reason if cut else FinishReason.TOOL_CALLS
        self.events.append(self._finished(reason, stop))
        self.done = True

    def _finished(self, reason: FinishReason, stop: str | int | None) -> Finished:
        now = time.perf_counter()
        first = self._first or now
        count = len(self.tokens)
        return Finished(
            reason=reason,
            usage=self.usage,
            metrics=Metrics(
                prompt_per_second=len(self.prompt) / max(first - self._start, 1e-9),
                generation_per_second=(count - 1) / (now - first) if count > 1 else None,
                peak_memory_bytes=mx.get_peak_memory(),
                extra=self.measured,
            ),
            stop=stop,
            index=self.index,
        )

    def _score(self, token: int, logprobs: mx.array) -> TokenLogprob:
        values = np.array(logprobs.astype(mx.float32))
        best: list[int] = []
        if self._top:
            best = np.argpartition(-values, self._top - 1)[: self._top].tolist()
            best.sort(key=lambda item: (-values[item], item))
        scored = [(item, float(values[item])) for item in best]
        return self._voice.scored(token, float(values[token]), scored, first=len(self.tokens) == 1)


def _joined(events: Sequence[Event]) -> list[Event]:
    """The events with deltas of one kind that follow each other made one."""
    found: list[Event] = []
    for kind, group in groupby(events, key=type):
        run: Any = list(group)
        if kind not in (TextDelta, ReasoningDelta):
            found += run
            continue
        whole: dict[str, Any] = {"text": "".join(item.text for item in run)}
        for name in ("token_ids", "logprobs") if kind is TextDelta else ("token_ids",):
            whole[name] = tuple(value for item in run for value in getattr(item, name))
        found.append(attrs.evolve(run[0], **whole))
    return found


def _grammar(voice: Voice, params: GenerateParams, prompt_length: int) -> GrammarRow | None:
    if params.grammar is None:
        return None
    if params.ignore_eos:
        raise InvalidParameterError("An answer with a grammar ends with it: ignore_eos cannot be used.")
    if voice.grammars is None:
        raise UnsupportedInputError("This model's tokenizer does not support structured output.")
    return voice.grammars.row(params.grammar, prompt_length)


class AnswerStream(Iterator[Event | None]):
    """The iterator that the scheduler steps. ``close`` takes the row out of the batch."""

    def __init__(self, batch: SharedBatch, answer: Answer, context: RunContext) -> None:
        self._batch = batch
        self._answer = answer
        self._budget_ms = context.budget_ms
        self._closed = False

    def __next__(self) -> Event | None:
        answer = self._answer
        if self._closed:
            raise StopIteration
        if not answer.events and answer.failure is None:
            self._batch.poll(answer, self._budget_ms)
        else:
            self._batch.touch(answer)
        if answer.events:
            event = answer.events.popleft()
            if isinstance(event, Finished):
                self._closed = True
            return event
        if answer.failure is not None:
            self.close()
            raise _typed(answer.failure)
        return None

    @property
    def usage(self) -> TokenUsage:
        """What was used so far."""
        return self._answer.usage

    @property
    def waiting(self) -> bool:
        """Whether the row waits for a place in the batch, and has said nothing."""
        return not (self._closed or self._answer.inside or self._answer.tokens)

    @property
    def step_seconds(self) -> float | None:
        """What the batch's step should take."""
        return self._batch.step_seconds

    def close(self) -> None:
        """Cancel: the row leaves the batch at once, in prefill or in decode."""
        if not self._closed:
            self._closed = True
            self._answer.events.clear()
            self._batch.remove(self._answer)


def _typed(error: Exception) -> MLXEngineError:
    if isinstance(error, MLXEngineError):
        return error
    failure = GenerationError(f"This request failed: {type(error).__name__}: {error}.")
    failure.__cause__ = error
    return failure


__all__ = [
    "MAX_TOKENS",
    "Answer",
    "AnswerStream",
    "Voice",
    "penalty_settings",
    "sampler_settings",
    "stop_texts",
    "token_limit",
]
