"""How probable texts are to the model: short ones together, a long one a piece at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from attrs import define, field, frozen

from ..contract.events import Event, Finished, Metrics
from ..contract.tokens import TokenUsage
from ..errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from ..text.outputs import TextScore
from ..text.requests import ScoreRequest
from .adapters import Adapters
from .answers import Voice
from .logprobs import normalised
from .pace import Pace
from .rows import Stepped
from .trial import Trial

_LOGITS = 1 << 28  # bytes that the logits of a pass may take, in fp32

Encoded = Callable[[list[list[int]]], Iterator[Event | None]]
"""Goes on with the tokens of texts."""

Read = Callable[[int], mx.array]
"""Reads the next tokens of texts, at most so many of each; their logits, shape (texts, n, vocabulary)."""


@frozen(kw_only=True)
class Scored:
    """What scoring asks of a loaded model.

    Args:
        name: the model's, for errors.
        begin: starts to read texts together from empty caches; they differ in length only if ``trial`` allows
            that, and then all of them are read at once, their logits padded on the right.
        encode: goes on with the tokens of texts, the tokenizer's own opening tokens before each; asked with
            whether they have to fit in the context.
        voice: of the model's answers.
        adapters: of the model.
        trial: whether texts may share a pass.
        vocabulary: number of logits.
        context: longest context in tokens, or ``None``.
        opening: the token that opens a text.
        first_piece: see `SharedBatch`.
        alone: whether texts never share a pass.
        media: token ids that stand for media, which no text has.
    """

    name: str
    begin: Callable[[Sequence[Sequence[int]]], Read]
    encode: Callable[[Sequence[str], Encoded, bool], Iterator[Event | None]]
    voice: Voice
    adapters: Adapters
    trial: Trial
    vocabulary: int
    context: int | None
    opening: int
    first_piece: int = Pace.FIRST
    alone: bool = False
    media: frozenset[int] = frozenset()


@frozen(kw_only=True)
class _Window:
    """Tokens that are read from an empty cache, to score those from ``first`` (at least 1) on."""

    text: int
    tokens: list[int]
    first: int

    @property
    def reads(self) -> int:
        """Tokens that are read; the last one is only scored."""
        return len(self.tokens) - 1


@define
class _Found:
    """What is known of the tokens of a text so far."""

    token_ids: list[int] = field(factory=list)
    logprobs: list[float] = field(factory=list)
    best: list[list[tuple[int, float]]] = field(factory=list)
    greedy: bool = True

    def add(self, logits: mx.array, wanted: list[int], top: int) -> None:
        """Logits of shape (tokens, vocabulary) in fp32, and the token that follows each."""
        logprobs = normalised(logits)
        ids = mx.array(wanted)
        picked: Any = mx.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]
        self.greedy &= bool(mx.all(mx.argmax(logits, axis=-1) == ids).item())
        self.token_ids += wanted
        self.logprobs += picked.tolist()
        if top:
            places = mx.argpartition(-logprobs, top - 1, axis=-1)[:, :top]
            values: Any = mx.take_along_axis(logprobs, places, axis=-1)
            rows: Any = places.tolist()
            for row, scores in zip(rows, values.tolist(), strict=True):
                self.best.append(sorted(zip(row, scores, strict=True), key=lambda item: (-item[1], item[0])))

    def event(self, voice: Voice, index: int) -> TextScore:
        told = zip(self.token_ids, self.logprobs, self.best, strict=bool(self.best))
        return TextScore(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            greedy=self.greedy,
            tokens=tuple(voice.scored(token, value, best) for token, value, best in told),
            index=index,
        )


def score(model: Scored, request: ScoreRequest, budget_ms: float) -> Iterator[Event | None]:
    """Check the request and start.

    Args:
        model: what the texts are scored by.
        request: the texts.
        budget_ms: see `mlxengine.RunContext`.

    Raises:
        InvalidParameterError: a text has nothing to score, or a token id is not in the vocabulary.
        PromptTooLongError: a text does not fit in the context, and ``rolling`` was not asked for.
        UnsupportedInputError: a token stands for media.
    """
    model.adapters.resolve(request.adapter)

    def start(texts: list[tuple[list[int], int]]) -> Iterator[Event | None]:
        for tokens, first in texts:
            _check(model, tokens, first, rolling=request.rolling)
        windows = [
            window
            for at, (tokens, first) in enumerate(texts)
            for window in _windows(at, tokens, first, model.context)
        ]
        scorer = _Scorer(model, [_Found() for _ in texts], request.top_logprobs, budget_ms)
        model.adapters.give(scorer, model.adapters.resolve(request.adapter))  # it may be gone since
        return scorer.run(windows, sum(len(tokens) for tokens, _ in texts))

    if request.tokens is not None:
        rows = [item for item in request.tokens if isinstance(item, tuple)]
        ids = [item for item in request.tokens if isinstance(item, int)]
        return start([(list(row), 1) for row in rows or [tuple(ids)]])
    pairs = request.pairs
    wholes = [(before or "") + text for before, text in pairs]
    befores = list(dict.fromkeys(before for before, _ in pairs if before is not None))

    def encoded(tokens: list[list[int]]) -> Iterator[Event | None]:
        known = dict(zip(befores, tokens[len(wholes) :], strict=True))
        texts = []
        for (before, _), whole in zip(pairs, tokens, strict=False):
            texts.append((whole, 1) if before is None else _behind(known[before], whole, model.opening))
        return start(texts)

    return model.encode([*wholes, *befores], encoded, not request.rolling)


def _behind(before: list[int], whole: list[int], opening: int) -> tuple[list[int], int]:
    """The tokens of a text with its context, and where those begin that are not of the context alone."""
    pairs = enumerate(zip(before, whole, strict=False))
    first = next((at for at, (one, other) in pairs if one != other), min(len(before), len(whole)))
    return (whole, first) if first else ([opening, *whole], 1)


def _check(model: Scored, tokens: list[int], first: int, *, rolling: bool) -> None:
    if len(tokens) <= first:
        raise InvalidParameterError(
            f"A text of {len(tokens)} tokens, of which {first} are only context, cannot be scored.",
            hint="Give a longer text, or context='' to score its first token too.",
        )
    if model.context is not None and len(tokens) > model.context + 1 and not rolling:
        raise PromptTooLongError(
            f"The text has {len(tokens)} tokens; {model.name} takes {model.context}.",
            hint="Ask for rolling=True to score it in windows.",
        )
    size = model.vocabulary
    wrong = [item for item in tokens if isinstance(item, bool) or not 0 <= item < size]
    if wrong:
        raise InvalidParameterError(
            f"{wrong[0]!r} is not a token id: the vocabulary of {model.name} has {size} tokens."
        )
    if media := model.media.intersection(tokens):
        raise UnsupportedInputError(
            f"The token {min(media)} of {model.name} stands for media, and a score is of text alone.",
            hint="Leave the model's placeholders out of the text.",
        )


def _windows(text: int, tokens: list[int], first: int, context: int | None) -> Iterator[_Window]:
    """Windows that score each token from ``first`` on once, each with as much before it as fits.

    They are those of lm-evaluation-harness (``get_rolling_token_windows`` with a context of one token); the
    last one begins so early that it is full.
    """
    size = len(tokens) if context is None else context
    while first < len(tokens):
        end = min(first + size, len(tokens))
        start = max(0, end - size - 1)
        yield _Window(text=text, tokens=tokens[start:end], first=first - start)
        first = end


@define(eq=False)
class _Scorer:
    model: Scored
    found: list[_Found]
    top: int
    budget_ms: float
    adapter: str | None = None
    done: bool = False
    failure: Exception | None = None
    pace: Pace = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pace = Pace(first=self.model.first_piece)

    def run(self, windows: list[_Window], tokens: int) -> Iterator[Event | None]:
        """The passes, with an event for each text as soon as it is done."""
        try:
            yield from self._run(windows, tokens)
        finally:
            self.done = True

    def _run(self, windows: list[_Window], tokens: int) -> Iterator[Event | None]:
        start = time.perf_counter()
        if len(windows) > 1 and not self.model.alone and self.model.trial.hold():
            yield None
        left = Counter(window.text for window in windows)
        waiting = sorted(windows, key=lambda item: item.reads)  # stable, and those of a text are equally long
        while waiting:
            group = self._group(waiting)
            del waiting[: len(group)]
            if len(group) == 1:
                yield from self._alone(group[0])
            else:
                self._together(group)
                yield None
            for window in group:
                left[window.text] -= 1
                if not left[window.text]:
                    yield self.found[window.text].event(self.model.voice, window.text)
        yield Finished(
            usage=TokenUsage(prompt_tokens=tokens),
            metrics=Metrics(
                prompt_per_second=tokens / (time.perf_counter() - start),
                peak_memory_bytes=mx.get_peak_memory(),
            ),
        )

    def _group(self, waiting: list[_Window]) -> list[_Window]:
        """The first of those that wait, by length, which share a pass."""
        company = self.model.trial.company
        budget = self._budget()
        group = waiting[:1]
        for window in waiting[1:]:
            alike = company.padded or (company.equal and window.reads == group[0].reads)
            if self.model.alone or not alike or (len(group) + 1) * window.reads > budget:
                break
            group.append(window)
        return group

    def _budget(self) -> int:
        """Tokens of a pass."""
        return min(self.pace.tokens(self.budget_ms), max(_LOGITS // (4 * self.model.vocabulary), 1))

    def _together(self, group: Sequence[_Window]) -> None:
        began = time.perf_counter()
        length = max(window.reads for window in group)
        logits = self._read(self.model.begin([window.tokens[:-1] for window in group]), length, len(group))
        for row, window in zip(logits, group, strict=True):
            wanted = window.tokens[window.first :]
            self.found[window.text].add(row[window.first - 1 : window.reads], wanted, self.top)
        self.pace.observe(Stepped(prompt_tokens=len(group) * length), time.perf_counter() - began)

    def _alone(self, window: _Window) -> Iterator[Event | None]:
        read = self.model.begin([window.tokens[:-1]])
        at = 0
        while at < window.reads:
            began = time.perf_counter()
            logits = self._read(read, self._budget())[0]
            skipped = max(window.first - 1 - at, 0)
            count = logits.shape[0]
            if skipped < count:
                wanted = window.tokens[at + skipped + 1 : at + count + 1]
                self.found[window.text].add(logits[skipped:], wanted, self.top)
            else:
                mx.eval(logits)
            self.pace.observe(Stepped(prompt_tokens=count), time.perf_counter() - began)
            at += count
            yield None

    def _read(self, read: Read, count: int, rows: int = 1) -> mx.array:
        self.model.adapters.use(*[self.adapter] * rows)
        return read(count)


__all__ = ["Encoded", "Read", "Scored", "score"]
