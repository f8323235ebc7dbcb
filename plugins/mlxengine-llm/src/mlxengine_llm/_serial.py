"""One row at a time: rows that guess would advance by different numbers of tokens.

Only greedy rows without processors speculate, so that tokens stay those of plain decoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlxengine.toolkit.adapter_rows import adapter_of
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.logprobs import normalised
from mlxengine.toolkit.prefix import PrefixCache
from mlxengine.toolkit.rows import Drawn, Plan, Row, Stepped
from mlxengine.toolkit.sampling import greedy

from ._caches import Serving, caches_for
from ._speculation import Draft, Guesser, Lookup, Payoff


class SerialDecoder:
    """A decoder for one row at a time.

    Args:
        network: mlx-lm's module.
        serving: the cache, and whether to guess.
        adapters: of the network.
        prefixes: caches of the earlier prompts of an adapter.
        draft: the smaller model that guesses, mlx-lm's module.
    """

    spare = 0

    def __init__(
        self,
        network: Any,
        serving: Serving,
        adapters: Adapters,
        prefixes: Callable[[str | None], PrefixCache | None],
        draft: Any = None,
    ) -> None:
        self._network = network
        self._serving = serving
        self._draft = draft
        self._prefixes = prefixes
        self._adapters = adapters
        self._row: Row | None = None
        self._cache: list[Any] = []
        self._held = 0  # tokens in the cache
        self._guesser: Guesser = Lookup()
        self._payoff = Payoff()

    def insert(self, row: Row) -> None:
        tokens = row.prompt + row.tokens
        prefixes = self._prefixes(adapter_of(row)) if row.reuse else None
        found = prefixes.find(tokens) if prefixes is not None else None
        if row.kept is not None:
            self._cache, self._held = row.kept
        elif found is not None:
            self._cache, self._held = found[0], len(found[1])
            if not row.tokens:
                row.cached = min(self._held, len(row.prompt))
        else:
            self._cache, self._held = caches_for(self._network, self._serving), 0
        self._row = row
        self._guesser = Lookup() if self._draft is None else Draft(self._draft)
        self._payoff = Payoff()

    def step(self, plan: Plan) -> Stepped:
        row = self._row
        assert row is not None
        self._adapters.use(adapter_of(row))
        tokens = row.prompt + row.tokens
        began = time.perf_counter()
        left = len(tokens) - self._held
        if left > 1:
            piece = tokens[self._held : self._held + min(plan.tokens, left - 1)]
            self._network(mx.array([piece]), cache=self._cache)
            mx.eval([layer.state for layer in self._cache])
            self._held += len(piece)
            return Stepped(prompt_tokens=len(piece))
        guesses: list[int] = []
        if self._may_guess(row):
            if self._guesser.behind(tokens) > plan.tokens:
                read = self._guesser.read(tokens, plan.tokens)
                return Stepped(prompt_tokens=read)
            count = min(self._payoff.count(), self._room() - 1)
            guesses = self._guesser.guess(tokens, count) if count else []
        logits = self._network(mx.array([tokens[-1:] + guesses]), cache=self._cache)[0]
        if guesses:
            drawn = self._check(row, logits, guesses)
        else:
            drawn = [self._draw(row, tokens, logits[-1:])]
            self._held += 1
        self._payoff.took(len(guesses), len(drawn) - 1, time.perf_counter() - began)
        if isinstance(row, Answer) and self._serving.serial:
            row.measured = self._payoff.measured
        return Stepped(drawn=drawn)

    def remove(self, rows: Sequence[Row]) -> None:
        row = self._row
        if row is None or not any(row is other for other in rows):
            return
        tokens = (row.prompt + row.tokens)[: self._held]
        if self._held > len(tokens):  # the answer ended among guesses that were right
            for layer in self._cache:
                layer.trim(self._held - len(tokens))
        prefixes = self._prefixes(adapter_of(row)) if row.reuse else None
        if prefixes is not None and row.failure is None:
            prefixes.add(self._cache, tokens)
        self._row, self._cache = None, []

    def tidy(self) -> None:
        """A row that leaves takes its cache along."""

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        del row  # its answer is bounded, and readers that wait drive it to its end
        return None

    def close(self) -> None:
        self._row, self._cache = None, []

    def _draw(self, row: Row, tokens: list[int], logits: mx.array) -> Drawn:
        context = mx.array(tokens)
        for processor in row.processors:
            logits = processor(context, logits)
        logprobs = normalised(logits)
        chosen: Any = row.sampler(logprobs).item()
        return Drawn(row, int(chosen), logprobs[0])

    def _may_guess(self, row: Row) -> bool:
        if not self._serving.serial or row.sampler is not greedy or row.processors or not row.tokens:
            return False
        return all(layer.is_trimmable() for layer in self._cache) and self._room() > 1

    def _room(self) -> int:
        """Tokens that fit before some are pushed out, which could not be taken back."""
        sizes = [layer.max_size - layer.offset for layer in self._cache if hasattr(layer, "max_size")]
        return min(sizes, default=1 << 30)

    def _check(self, row: Row, logits: mx.array, guesses: list[int]) -> list[Drawn]:
        """The guesses that the model agrees with, and the token after them."""
        logprobs = normalised(logits)
        chosen: Any = mx.argmax(logprobs, axis=-1).tolist()
        right = next((at for at, token in enumerate(guesses) if chosen[at] != token), len(guesses))
        for layer in self._cache:
            layer.trim(len(guesses) - right)
        self._held += right + 1
        return [Drawn(row, chosen[at], logprobs[at]) for at in range(right + 1)]


__all__ = ["SerialDecoder"]
