"""A row that decodes alone, without the padding and the masks of a batch.

The caches of a batch of one cost a quarter of the speed of a small model on a GPU. While a row has no
company it therefore keeps a plain cache, and the next token is computed while the last one is read.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.rows import Drawn, Row


class Solo:
    """One row with its own cache.

    Args:
        network: mlx-lm's module.
        row: the row.
        layers: its cache, of a batch of one.
        held: the tokens in the cache.
        token: the token that comes after them, which the row has been given.
        grammars: told before each step which token was drawn.
    """

    def __init__(
        self,
        network: Any,
        row: Row,
        layers: list[Any],
        held: list[int],
        token: int,
        grammars: Grammars | None,
    ) -> None:
        from mlx_lm.models.cache import TokenBuffer

        self.row = row
        self.layers = layers
        self.held = held
        self._network = network
        self._grammars = grammars
        self._context = TokenBuffer(list(held)) if row.processors else None
        self._steps = 0
        self._next = mx.array([token])
        self._launch()
        self.held.append(token)

    def step(self) -> Drawn:
        """The next token; the one after it is being computed when this returns."""
        token, logprobs = self._next, self._logprobs
        self._launch()
        value: Any = token.item()
        self._steps += 1
        if self._steps % 256 == 0:
            mx.clear_cache()
        self.held.append(int(value))
        return Drawn(self.row, int(value), logprobs)

    def leave(self) -> Drawn:
        """The token that is drawn but not in the cache yet; the row needs another place now."""
        value: Any = self._next.item()
        return Drawn(self.row, int(value), self._logprobs)

    def _launch(self) -> None:
        """Queue the pass that reads ``self._next`` and draws the token after it."""
        inputs = self._next
        logits = self._network(inputs[:, None], cache=self.layers)[:, -1, :]
        if self._context is not None:
            grammar = getattr(self.row, "grammar", None)
            if self._grammars is not None and grammar is not None:
                self._grammars.expect([(0, grammar)], inputs)
            context = self._context.update_and_fetch(inputs)
            for processor in self.row.processors:
                logits = processor(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self._next = self.row.sampler(logprobs)
        self._logprobs = logprobs[0]
        mx.async_eval(self._next, self._logprobs)  # type: ignore[no-untyped-call]


__all__ = ["Solo"]
