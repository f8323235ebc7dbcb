"""The rows that decode together: one pass draws a token for each.

A row that has no company keeps its plain cache: the padding and the masks of a batch cost a quarter of the
speed of a small model on a GPU. Each step queues the pass that draws the next tokens before it waits for the
last ones, so that the device is never idle, and takes nothing else from it that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import TokenBuffer
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.rows import Drawn, Row
from mlxengine.toolkit.sampling import greedy

from ._adapters import Adapters
from ._caches import own
from ._tags import adapter_of


class Batch:
    """Rows with their caches.

    Args:
        network: mlx-lm's module.
        adapters: of the network; each row uses its own.
        grammars: of the rows, told before each pass which tokens were drawn.
    """

    def __init__(self, network: Any, adapters: Adapters, grammars: Grammars | None) -> None:
        self._network = network
        self._adapters = adapters
        self._grammars = grammars
        self.rows: list[Row] = []
        self.layers: list[Any] = []  # plain while there is one row
        self.held: list[list[int]] = []  # of each row, the tokens in its cache
        self._last: list[int] = []  # what a row that joined brought; its prompt's end
        self._contexts: list[TokenBuffer | None] = []
        self._drawn: mx.array | None = None  # of the last pass, perhaps not computed yet
        self._logprobs: mx.array | None = None  # what they were drawn from
        self._places: list[int | None] = []  # where a row's token is in them; None where it is in `_last`

    def __len__(self) -> int:
        return len(self.rows)

    def join(
        self, rows: Sequence[Row], held: Sequence[list[int]], last: Sequence[int], layers: list[Any]
    ) -> None:
        """Take rows in.

        Args:
            rows: the rows.
            held: the tokens that each has in its cache.
            last: the token of each that comes next.
            layers: their caches, a batch's; or the plain ones of a single row that comes to an empty batch.
        """
        if not self.rows:
            self.layers = layers
        else:
            if len(self.rows) == 1:
                self.layers = merged([self.layers])
            for layer, other in zip(self.layers, layers, strict=True):
                layer.extend(other)
        self.rows += rows
        self.held += held
        self._last += last
        self._places += [None] * len(rows)
        self._contexts += [
            TokenBuffer(list(tokens)) if row.processors else None
            for row, tokens in zip(rows, held, strict=True)
        ]

    def step(self) -> list[Drawn]:
        """The tokens that the last pass drew; the pass behind it is queued when this returns.

        Rows that joined since then have none yet.
        """
        drawn, logprobs, places = self._drawn, self._logprobs, self._places
        inputs = self._inputs()
        self._adapters.use(*(adapter_of(row) for row in self.rows))
        self._expect(drawn, places)
        logits, seen = self._processed(inputs, self._network(inputs[:, None], cache=self.layers)[:, -1, :])
        scored = any(row.scored for row in self.rows)
        if scored or any(row.sampler is not greedy for row in self.rows):
            logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self._drawn = self._sampled(logits)
        self._logprobs = logits if scored else None
        self._places = list(range(len(self.rows)))
        mx.async_eval(self._drawn, self._logprobs, seen)  # type: ignore[no-untyped-call]
        values: Any = [] if drawn is None else drawn.tolist()
        said = []
        for at, (row, place) in enumerate(zip(self.rows, places, strict=True)):
            token = self._last[at] if place is None else int(values[place])
            self.held[at].append(token)
            if place is not None:
                scores = logprobs[place] if row.scored and logprobs is not None else None
                said.append(Drawn(row, token, scores))
        return said

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out."""
        keep = [at for at, row in enumerate(self.rows) if not any(row is other for other in rows)]
        if len(keep) == len(self.rows):
            return
        if len(keep) < 2:
            self.layers = [part for at in keep for part in self._extracted(at)]
        else:
            for layer in self.layers:
                layer.filter(keep)
        for name in ("rows", "held", "_last", "_contexts", "_places"):
            values = getattr(self, name)
            setattr(self, name, [values[at] for at in keep])
        if not keep:
            self._drawn = self._logprobs = None

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
        row = self.rows[at]
        scores = self._logprobs[place] if row.scored and self._logprobs is not None else None
        return Drawn(row, int(token), scores)

    def _extracted(self, at: int) -> list[Any]:
        return self.layers if len(self.rows) == 1 else [layer.extract(at) for layer in self.layers]

    def _inputs(self) -> mx.array:
        """The token of each row that is not in its cache yet, shape (rows,)."""
        if self._drawn is None or all(place is None for place in self._places):
            return mx.array(self._last)
        if self._places == list(range(self._drawn.shape[0])):
            return self._drawn
        parts = [(place, self._last[at]) for at, place in enumerate(self._places)]
        old = [place for place, _ in parts if place is not None]
        new = [token for place, token in parts if place is None]  # those that joined are behind
        kept = self._drawn[mx.array(old)]
        return mx.concatenate([kept, mx.array(new, dtype=kept.dtype)]) if new else kept

    def _processed(self, inputs: mx.array, logits: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Logits after each row's processors, and what these were shown, to be evaluated with them."""
        if not any(self._contexts):
            return logits, []
        parts, seen = [], []
        for at, (row, context) in enumerate(zip(self.rows, self._contexts, strict=True)):
            own_logits = logits[at : at + 1]
            if context is not None:
                tokens = context.update_and_fetch(inputs[at : at + 1])
                seen.append(tokens)
                for process in row.processors:
                    own_logits = process(tokens, own_logits)
            parts.append(own_logits)
        return mx.concatenate(parts), seen

    def _sampled(self, logprobs: mx.array) -> mx.array:
        samplers = [row.sampler for row in self.rows]
        if all(sampler is samplers[0] for sampler in samplers):
            return samplers[0](logprobs)
        return mx.concatenate([draw(logprobs[at : at + 1]) for at, draw in enumerate(samplers)])

    def _expect(self, drawn: mx.array | None, places: Sequence[int | None]) -> None:
        if self._grammars is None or drawn is None:
            return
        found = [
            (place, grammar)
            for row, place in zip(self.rows, places, strict=True)
            if place is not None and (grammar := getattr(row, "grammar", None)) is not None
        ]
        self._grammars.expect(found, drawn)


def merged(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Plain caches of single rows as a batch's."""
    layers = [[own(layer) for layer in parts] for parts in zip(*rows, strict=True)]
    return [type(parts[0]).merge(parts) for parts in layers]


__all__ = ["Batch", "merged"]
