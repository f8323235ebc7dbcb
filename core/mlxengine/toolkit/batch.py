"""The rows that decode together: one pass draws a token for each.

A row that has no company keeps its plain cache: the padding and the masks of a batch cost a quarter of the
speed of a small model on a GPU. Each step queues the pass that draws the next tokens before it waits for the
last ones, so that the device is never idle, and takes nothing else from it that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from .grammar import Grammars
from .logprobs import normalised
from .row import Drawn, Row
from .sampling import greedy


class Decodes(Protocol):
    """What the batch asks of a network."""

    def merge(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """A batch's caches of the plain ones of single rows."""
        ...

    def decode(self, rows: Sequence[Row], tokens: mx.array, layers: list[Any]) -> mx.array:
        """Read one more token of each row, shape (rows, 1); logits of shape (rows, vocabulary)."""
        ...


class Batch:
    """Rows with their caches.

    Args:
        network: reads their tokens.
        grammars: of the rows, told before each pass which tokens were drawn.
        plain: whether a row that is alone keeps its plain cache, into which a batch's can be taken apart.
    """

    def __init__(self, network: Decodes, grammars: Grammars | None, *, plain: bool = True) -> None:
        self._network = network
        self._grammars = grammars
        self._alone_plain = plain
        self._plain = False
        self.rows: list[Row] = []
        self.layers: list[Any] = []
        self.held: list[list[int]] = []  # of each row, the tokens in its cache
        self._last: list[int] = []  # what a row that joined brought; its prompt's end
        self._contexts: list[_Tokens | None] = []
        self._drawn: mx.array | None = None  # of the last passes, perhaps not computed yet
        self._scores: list[mx.array | None] = []  # what they were drawn from, of rows that want it
        self._places: list[int | None] = []  # where a row's token is in them; None where it is in `_last`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def takes_plain(self) -> bool:
        """Whether the next row may come with its plain cache."""
        return self._alone_plain and not self.rows

    def join(
        self,
        rows: Sequence[Row],
        held: Sequence[list[int]],
        last: Sequence[int],
        layers: list[Any],
        *,
        plain: bool = False,
        logits: mx.array | None = None,
    ) -> None:
        """Take rows in.

        Args:
            rows: the rows.
            held: the tokens that each has in its cache.
            last: the token of each that comes next, without ``logits``.
            layers: their caches, a batch's.
            plain: ``layers`` are the plain ones of a single row; only where `takes_plain`.
            logits: where the pass that read the last token of each has shape (rows, vocabulary) of them: the
                first token of the answers is drawn from these.
        """
        if not self.rows:
            self.layers, self._plain = layers, plain
        else:
            if self._plain:
                self.layers, self._plain = self._network.merge([self.layers]), False
            for layer, other in zip(self.layers, layers, strict=True):
                layer.extend(other)
        contexts = [
            _Tokens(tokens) if row.processors else None for row, tokens in zip(rows, held, strict=True)
        ]
        self.rows += rows
        self.held += held
        self._contexts += contexts
        if logits is None:
            self._last += last
            self._places += [None] * len(rows)
            return
        before = 0 if self._drawn is None else self._drawn.shape[0]
        drawn, scores, _ = _draw(rows, contexts, None, logits)
        self._last += [0] * len(rows)
        self._places += range(before, before + len(rows))
        self._drawn = drawn if self._drawn is None else mx.concatenate([self._drawn, drawn])
        self._scores += scores

    def step(self) -> list[Drawn]:
        """The tokens that the last passes drew; the pass behind them is queued when this returns.

        Rows that joined since then without any have none yet.
        """
        drawn, scores, places = self._drawn, self._scores, self._places
        inputs = self._inputs()
        self._expect(drawn, places)
        logits = self._network.decode(self.rows, inputs[:, None], self.layers)
        self._drawn, self._scores, seen = _draw(self.rows, self._contexts, inputs, logits)
        self._places = list(range(len(self.rows)))
        mx.async_eval(self._drawn, self._scores, seen)  # type: ignore[no-untyped-call]
        values: Any = [] if drawn is None else drawn.tolist()
        said = []
        for at, (row, place) in enumerate(zip(self.rows, places, strict=True)):
            token = self._last[at] if place is None else int(values[place])
            self.held[at].append(token)
            if place is not None:
                said.append(Drawn(row, token, scores[place]))
        return said

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out."""
        keep = [at for at, row in enumerate(self.rows) if not any(row is other for other in rows)]
        if len(keep) == len(self.rows):
            return
        if len(keep) < 2 and (self._alone_plain or not keep):
            self.layers = [part for at in keep for part in self._extracted(at)]
            self._plain = bool(keep)
        else:
            for layer in self.layers:
                layer.filter(keep)
        for name in ("rows", "held", "_last", "_contexts", "_places"):
            values = getattr(self, name)
            setattr(self, name, [values[at] for at in keep])
        if not keep:
            self._drawn, self._scores = None, []

    def index(self, row: Row) -> int | None:
        """Where a row is, if it is here."""
        return next((at for at, other in enumerate(self.rows) if other is row), None)

    def cache(self, at: int) -> tuple[list[Any], list[int]]:
        """A row's plain cache, over the same arrays where it is alone, and the tokens in it."""
        return self._extracted(at), list(self.held[at])

    def drawn(self, at: int) -> Drawn | None:
        """The token of a row that is drawn but not in its cache yet; ``None`` before the first."""
        place = self._places[at]
        if place is None or self._drawn is None:
            return None
        token: Any = self._drawn[place].item()
        return Drawn(self.rows[at], int(token), self._scores[place])

    def _extracted(self, at: int) -> list[Any]:
        return self.layers if self._plain else [layer.extract(at) for layer in self.layers]

    def _inputs(self) -> mx.array:
        """The token of each row that is not in its cache yet, shape (rows,)."""
        if self._drawn is None or all(place is None for place in self._places):
            return mx.array(self._last)
        count = self._drawn.shape[0]
        if self._places == list(range(count)):
            return self._drawn
        new = [token for token, place in zip(self._last, self._places, strict=True) if place is None]
        behind = iter(range(count, count + len(new)))
        order = [next(behind) if place is None else place for place in self._places]
        values = self._drawn
        if new:
            values = mx.concatenate([values, mx.array(new, dtype=values.dtype)])
        return values[mx.array(order)]

    def _expect(self, drawn: mx.array | None, places: Sequence[int | None]) -> None:
        if self._grammars is None or drawn is None:
            return
        found = [
            (place, grammar)
            for row, place in zip(self.rows, places, strict=True)
            if place is not None and (grammar := getattr(row, "grammar", None)) is not None
        ]
        self._grammars.expect(found, drawn)


class _Tokens:
    """The tokens of one row as an array that grows without being copied at each."""

    STEP = 256

    def __init__(self, tokens: Sequence[int]) -> None:
        self._size = len(tokens)
        self._buffer = mx.array(list(tokens), dtype=mx.int32)

    def fetch(self, more: mx.array | None = None) -> mx.array:
        """All of them, ``more`` behind the others; shape (tokens,)."""
        if more is not None:
            start, self._size = self._size, self._size + more.shape[0]
            if self._size > self._buffer.shape[0]:
                room = -(-self._size // self.STEP) * self.STEP - self._buffer.shape[0]
                self._buffer = mx.concatenate([self._buffer, mx.zeros(room, dtype=mx.int32)])
            self._buffer[start : self._size] = more
        return self._buffer[: self._size]


def _draw(
    rows: Sequence[Row], contexts: Sequence[_Tokens | None], inputs: mx.array | None, logits: mx.array
) -> tuple[mx.array, list[mx.array | None], list[mx.array]]:
    """Draw a token for each row, by its own rules.

    Args:
        rows: the rows.
        contexts: what the processors of each are shown.
        inputs: a token of each that its context does not have yet, shape (rows,).
        logits: shape (rows, vocabulary).

    Returns:
        The tokens, shape (rows,); what those of `Row.scored` were drawn from, shape (vocabulary,); and what
        the processors were shown, to be evaluated with them.
    """
    seen = []
    if any(context is not None for context in contexts):
        parts = []
        for at, (row, context) in enumerate(zip(rows, contexts, strict=True)):
            own = logits[at : at + 1]
            if context is not None:
                tokens = context.fetch(None if inputs is None else inputs[at : at + 1])
                seen.append(tokens)
                for process in row.processors:
                    own = process(tokens, own)
            parts.append(own)
        logits = mx.concatenate(parts)
    samplers = [row.sampler for row in rows]
    if any(row.scored for row in rows) or any(sampler is not greedy for sampler in samplers):
        logits = normalised(logits)
    if all(sampler is samplers[0] for sampler in samplers):
        drawn = samplers[0](logits)
    else:
        drawn = mx.concatenate([draw(logits[at : at + 1]) for at, draw in enumerate(samplers)])
    return drawn, [logits[at] if row.scored else None for at, row in enumerate(rows)], seen


__all__ = ["Batch", "Decodes"]
