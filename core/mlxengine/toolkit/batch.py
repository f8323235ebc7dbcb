"""The rows that decode together: one pass draws a token for each.

A row that has no company keeps its plain cache: the padding and the masks of a batch cost a quarter of the
speed of a small model on a GPU. Each step queues the pass that draws the next tokens before it waits for the
last ones, so that the device is never idle, and takes nothing else from it that nobody asked for.

Where requests come and go all the time, a change of the batch costs a GPU more than a row that is decoded for
nobody: a row that leaves makes room for the next one, which is written into its place.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

import mlx.core as mx

from .grammar import Grammars
from .joining import copied, keep_rows, shorten, taken, write_rows
from .logprobs import normalised
from .row import Drawn, Row
from .sampling import greedy

LINGER = 32
"""Steps for which a row that left may keep its place."""

SURPLUS = 256
"""Positions that nobody needs any more are cut off the caches when there are so many."""


class Decodes(Protocol):
    """What the batch asks of a network."""

    def merge(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """A batch's caches of the plain ones of single rows."""
        ...

    def decode(self, rows: Sequence[Row], tokens: mx.array, layers: list[Any]) -> mx.array:
        """Read one more token of each row, shape (rows, 1); logits of shape (rows, vocabulary)."""
        ...


Draw = Callable[..., tuple[mx.array, list[mx.array | None], list[mx.array]]]
"""Takes and returns what `draw` does."""


class Batch:
    """Rows with their caches.

    Args:
        network: reads their tokens.
        grammars: of the rows, told before each pass which tokens were drawn.
        plain: whether a row that is alone keeps its plain cache, into which a batch's can be taken apart.
        spares: whether rows that left may keep their places for others. One place in four at most does.
        drawing: draws the tokens; `draw` where it is ``None``.
    """

    def __init__(
        self,
        network: Decodes,
        grammars: Grammars | None,
        *,
        plain: bool = True,
        spares: bool = False,
        drawing: Draw | None = None,
    ) -> None:
        self._network = network
        self._grammars = grammars
        self._alone_plain = plain
        self._spares = spares
        self._draw = drawing or draw
        self._plain = False
        self._told: bool | None = None  # whether the tokens held are the positions in the caches
        self._steps = 0
        self._left: dict[int, int] = {}  # places whose row left, and in which step
        self.rows: list[Row] = []
        self.layers: list[Any] = []
        self.held: list[list[int]] = []  # of each row, the tokens in its cache
        self._last: list[int] = []  # what a row that joined brought; its prompt's end
        self._contexts: list[Context | None] = []
        self._drawn: mx.array | None = None  # of the last passes, perhaps not computed yet
        self._scores: list[mx.array | None] = []  # what they were drawn from, of rows that want it
        self._places: list[int | None] = []  # where a row's token is in them; None where it is in `_last`

    def __len__(self) -> int:
        return len(self.rows) - len(self._left)

    @property
    def spare(self) -> int:
        """Places whose row left, as large as the others."""
        return len(self._left)

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
        contexts = [
            Context(tokens) if row.processors else None for row, tokens in zip(rows, held, strict=True)
        ]
        drawn_at: list[int | None] = [None] * len(rows)
        if logits is not None:
            before = 0 if self._drawn is None else self._drawn.shape[0]
            drawn, scores, _ = self._draw(rows, contexts, None, logits)
            drawn_at = list(range(before, before + len(rows)))
            self._drawn = drawn if self._drawn is None else mx.concatenate([self._drawn, drawn])
            self._scores += scores
        new = list(zip(rows, held, last, contexts, drawn_at, strict=True))
        if self._takes_places(len(rows), layers):
            for seat, of in zip(self._seat(layers, len(rows)), new, strict=True):
                self.rows[seat], self.held[seat], self._last[seat] = of[:3]
                self._contexts[seat], self._places[seat] = of[3:]
            return
        self.tidy()
        if not self.rows:
            self.layers, self._plain = layers, plain
        else:
            if self._plain:
                self.layers, self._plain = self._network.merge([self.layers]), False
            for layer, other in zip(self.layers, layers, strict=True):
                layer.extend(other)
        for row, tokens, token, context, at in new:
            self.rows.append(row)
            self.held.append(tokens)
            self._last.append(token)
            self._contexts.append(context)
            self._places.append(at)

    def _takes_places(self, count: int, layers: Sequence[Any]) -> bool:
        """Whether so many rows find places whose caches are long enough for theirs."""
        return count <= len(self._left) and copied(layers) and layers[0]._idx <= self.layers[0]._idx

    def _seat(self, layers: Sequence[Any], count: int) -> list[int]:
        found = sorted(self._left)[:count]
        write_rows(self.layers, found, layers)
        for at in found:
            del self._left[at]
        return found

    def step(self) -> list[Drawn]:
        """The tokens that the last passes drew; the pass behind them is queued when this returns.

        Rows that joined since then without any have none yet.
        """
        self._steps += 1
        if self._left and self._steps - min(self._left.values()) > LINGER:
            self.tidy()
        drawn, scores, at_drawn = self._drawn, self._scores, self._places
        inputs = self._inputs()
        self._expect(drawn, at_drawn)
        logits = self._network.decode(self._decoded(), inputs[:, None], self.layers)
        self._drawn, self._scores, seen = self._draw(self.rows, self._contexts, inputs, logits, self._left)
        self._places = list(range(len(self.rows)))
        mx.async_eval(self._drawn, self._scores, seen)  # type: ignore[no-untyped-call]
        values: Any = [] if drawn is None else drawn.tolist()
        said = []
        for at, (row, found) in enumerate(zip(self.rows, at_drawn, strict=True)):
            if at in self._left:
                continue
            token = self._last[at] if found is None else int(values[found])
            self.held[at].append(token)
            if found is not None:
                said.append(Drawn(row, token, scores[found]))
        return said

    def _decoded(self) -> Sequence[Row]:
        """The rows, another one for each that left: its adapter may be gone."""
        if not self._left:
            return self.rows
        other = next(row for at, row in enumerate(self.rows) if at not in self._left)
        return [other if at in self._left else row for at, row in enumerate(self.rows)]

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out."""
        gone = [at for row in rows if (at := self.index(row)) is not None]
        if not gone:
            return
        for at in gone:
            self._left[at] = self._steps
            self.held[at], self._contexts[at] = [], None
        if not self._may_linger():
            self.tidy()
        elif (surplus := self._surplus()) >= SURPLUS:
            shorten(self.layers, surplus)

    def _may_linger(self) -> bool:
        if not self._spares or len(self) < 2 or 4 * len(self._left) > len(self.rows):
            return False
        return self._by_copy()

    def _by_copy(self) -> bool:
        """Whether the caches are of those that this module changes itself, told once from their lengths."""
        if self._told is None and copied(self.layers) and len(self) > 1:
            lengths: Any = self.layers[0].offset.tolist()
            self._told = all(
                len(held) == lengths[at] for at, held in enumerate(self.held) if at not in self._left
            )
        return bool(self._told) and copied(self.layers)

    def _surplus(self) -> int:
        """Positions of the caches that none of the rows has."""
        found: int = self.layers[0]._idx - max(
            len(held) for at, held in enumerate(self.held) if at not in self._left
        )
        return found

    def tidy(self) -> None:
        """Give up the places whose rows left."""
        if not self._left:
            return
        stay = [at for at in range(len(self.rows)) if at not in self._left]
        if len(stay) < 2 and (self._alone_plain or not stay):
            self.layers = [part for at in stay for part in self._extracted(at)]
            self._plain = bool(stay)
        elif self._by_copy():
            keep_rows(self.layers, stay)
            if surplus := self._surplus():
                shorten(self.layers, surplus)
        else:
            for layer in self.layers:
                layer.filter(stay)
        self._left.clear()
        for name in ("rows", "held", "_last", "_contexts", "_places"):
            values = getattr(self, name)
            setattr(self, name, [values[at] for at in stay])
        if not stay:
            self._drawn, self._scores = None, []

    def index(self, row: Row) -> int | None:
        """Where a row is, if it is here."""
        return next((at for at, other in enumerate(self.rows) if other is row and at not in self._left), None)

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
        if self._plain:
            return self.layers
        if self._by_copy():
            return taken(self.layers, at, len(self.held[at]))
        return [layer.extract(at) for layer in self.layers]

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
            for at, (row, place) in enumerate(zip(self.rows, places, strict=True))
            if place is not None
            and at not in self._left
            and (grammar := getattr(row, "grammar", None)) is not None
        ]
        self._grammars.expect(found, drawn)


class Context:
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


def draw(
    rows: Sequence[Row],
    contexts: Sequence[Context | None],
    inputs: mx.array | None,
    logits: mx.array,
    left: Container[int] = (),
) -> tuple[mx.array, list[mx.array | None], list[mx.array]]:
    """Draw a token for each row, by its own rules.

    Args:
        rows: the rows.
        contexts: what the processors of each are shown.
        inputs: a token of each that its context does not have yet, shape (rows,).
        logits: shape (rows, vocabulary).
        left: those for which any token will do.

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
    samplers = {at: row.sampler for at, row in enumerate(rows) if at not in left}
    first = next(iter(samplers.values()))
    scored = [at in samplers and row.scored for at, row in enumerate(rows)]
    if any(scored) or any(sampler is not greedy for sampler in samplers.values()):
        logits = normalised(logits)
    if all(sampler is first for sampler in samplers.values()):
        drawn = first(logits)
    else:
        drawn = mx.concatenate([samplers.get(at, greedy)(logits[at : at + 1]) for at in range(len(rows))])
    return drawn, [logits[at] if wanted else None for at, wanted in enumerate(scored)], seen


__all__ = ["Batch", "Context", "Decodes", "Draw", "draw"]
