"""The parts of a shared batch: rows, each one answer, and the decoder that advances them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from attrs import frozen

from .sampling import LogitsProcessor, Sampler, greedy, guarded

PATIENCE = 30.0
"""Seconds of waiting that make up for one step of priority."""


class Row:
    """One answer in the batch. Its owner overrides `take`, which must not raise for long.

    Args:
        prompt: token ids, at least one.
        sampler: as in `mlxengine.toolkit.sampling`; shared objects are sampled in one call.
        processors: logits processors of this row alone.
        priority: a higher one is served first; see `standing`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        sampler: Sampler = greedy,
        processors: Sequence[LogitsProcessor] = (),
        priority: int = 0,
    ) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.sampler = sampler
        self.processors = [guarded(item, self.fail) for item in processors]
        self.priority = priority
        self.done = False
        self.failure: Exception | None = None
        self.inside = False  # in the decoder, reading its prompt or decoding
        self.after: Row | None = None  # a row with the same prompt, read once for both
        self.aside = False  # parked, and not back yet
        self.kept: Any = None  # what the decoder gave for a row that was parked with its cache
        self.since = 0.0  # when it began to wait, on the clock of `time.monotonic`
        self.charged = 0  # tokens that its cache may hold before it is charged for more
        self.cost = 0  # bytes that it is charged with for these
        self.seen = -1
        self.reading = True
        self.read = 0  # tokens of its prompt that are in its cache, while that is read in pieces
        self.scored = False  # whether `take` wants the log-probabilities
        self.reuse = False  # whether its cache may come from, and go to, other rows
        self.cached = 0  # tokens of the prompt that did not have to be computed

    def standing(self, now: float, seconds: float = 0.0) -> float:
        """The place in a queue, lower first: the time its reading takes, less what it has waited.

        So a short prompt overtakes a long one, until that one has waited for as long as it takes; and a
        lower priority is late, not starved: each step of it is worth `PATIENCE` seconds.
        """
        return seconds - (now - self.since) - PATIENCE * self.priority

    @property
    def size(self) -> int:
        """Tokens of its prompt and of its answer so far."""
        return len(self.prompt) + len(self.tokens)

    @property
    def longest(self) -> int | None:
        """Tokens that these may become; ``None`` while nobody says."""
        return None

    @property
    def unread(self) -> int:
        """Events that the reader has not fetched yet."""
        return 0

    def ready(self) -> bool:
        """Whether it can be decoded; until then it waits outside the batch. May raise: then it fails."""
        return True

    def take(self, token: int, logprobs: mx.array | None) -> None:
        """Receive the next token and, where the row is ``scored``, what it was drawn from.

        That is log-probabilities of shape (vocabulary,). Set ``done`` when it was the last token.
        """
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Remember the first failure; the row leaves the batch after the step."""
        self.failure = self.failure or error


@frozen
class Drawn:
    """A token that a row is given; ``logprobs`` as in `Row.take`."""

    row: Row
    token: int
    logprobs: mx.array | None


@frozen(kw_only=True)
class Plan:
    """What one step may do. A decoder looks at no clock, so that another one given the same does the same.

    Args:
        tokens: of the prompts to read, about.
        now: on the clock of `time.monotonic`.
        token_seconds: time that reading a token takes; 0 while that is unknown.
        worth: tokens that are read in the time that a pass takes for itself; ``None`` while unknown.
        seconds: that the step should take; ``None`` where nothing tells.
    """

    tokens: int
    now: float = 0.0
    token_seconds: float = 0.0
    worth: int | None = None
    seconds: float | None = None


@frozen(kw_only=True)
class Stepped:
    """What one step did.

    Args:
        drawn: a token of each decoding row.
        prompt_tokens: of the prompts, in the passes that this step waited for.
        queued: of the prompts, in passes that a later step waits for.
        new_shape: the device had not met the shape of one of the passes that this step waited for.
    """

    drawn: Sequence[Drawn] = ()
    prompt_tokens: int = 0
    queued: int = 0
    new_shape: bool = False


class Decoder(Protocol):
    """What decodes rows together. All its methods are called on one thread, under one stream."""

    @property
    def spare(self) -> int:
        """How many rows that left still have a place, as large as the others', until one takes it."""
        ...

    def tidy(self) -> None:
        """Give up those places."""
        ...

    def insert(self, row: Row) -> None:
        """Take a row in: ``row.prompt + row.tokens``, or ``row.kept`` of a parked one; may raise."""
        ...

    def step(self, plan: Plan) -> Stepped:
        """A token of every row whose prompt is read, and about ``plan.tokens`` of the prompts, in all.

        Raises only what makes the whole batch unusable.
        """
        ...

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out."""
        ...

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        """Take a row out with its cache: the token that is drawn already, and what ``insert`` needs.

        ``None`` leaves the row where it is (its prompt is still being read).
        """
        ...

    def close(self) -> None:
        """Drop everything."""
        ...


__all__ = ["PATIENCE", "Decoder", "Drawn", "Plan", "Row", "Stepped"]
