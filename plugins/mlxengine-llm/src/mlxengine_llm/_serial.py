"""One row at a time, for what a shared batch cannot do: packed or bounded KV caches, and speculation.

Speculation needs no second model: where the last tokens occurred before, those that followed them then are
guessed now, and one forward pass checks them all (prompt lookup; Saxena 2023, after speculative decoding by
Leviathan et al. 2023). Only greedy rows without processors guess, so that tokens stay those of plain
decoding. Guessing stops for a while whenever it did not pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import frozen
from mlxengine.errors import FeatureUnavailableError
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.rows import Drawn, Row, Stepped
from mlxengine.toolkit.sampling import greedy

from ._prefix import PrefixCache

_LONGEST, _SHORTEST = 4, 2  # tokens that must have occurred before
_GUESSES = 4
_PATIENCE = 64
_KEPT = 4  # a bounded cache keeps the first tokens, which attention leans on (Xiao et al. 2023)


@frozen(kw_only=True)
class Serving:
    """How a model is served one row at a time; the defaults ask for nothing.

    Args:
        kv_bits: bits of the key-value cache.
        kv_tokens: most tokens in the cache; older ones but the first four are forgotten.
        speculation: guess tokens from the text so far.
    """

    kv_bits: int | None = None
    kv_tokens: int | None = None
    speculation: bool = False

    @property
    def serial(self) -> bool:
        return self.kv_bits is not None or self.kv_tokens is not None or self.speculation


def caches_for(network: Any, serving: Serving) -> list[Any]:
    """Empty caches of the wanted kind.

    Raises:
        FeatureUnavailableError: the model makes caches of its own, which the library would keep as they are.
    """
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache

    plain = make_prompt_cache(network)
    changed = serving.kv_bits is not None or serving.kv_tokens is not None
    if changed and any(type(layer) is not KVCache for layer in plain):
        raise FeatureUnavailableError(
            "This model makes its own key-value caches, which cannot be packed or bounded.",
            hint="Load it without llm.kv_bits and llm.kv_tokens.",
        )
    if serving.kv_bits is not None and serving.kv_tokens is not None:
        raise FeatureUnavailableError("llm.kv_bits and llm.kv_tokens cannot be used together.")
    if serving.kv_tokens is not None:
        return [RotatingKVCache(max_size=serving.kv_tokens, keep=_KEPT) for _ in plain]
    if serving.kv_bits is not None:
        return [QuantizedKVCache(group_size=_group(network), bits=serving.kv_bits) for _ in plain]
    return list(plain)


def _group(network: Any) -> int:
    args = getattr(network, "args", None)
    size = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads  # type: ignore[union-attr]
    group = next((item for item in (64, 32) if size % item == 0), None)
    if group is None:
        raise FeatureUnavailableError(
            f"Heads of {size} numbers cannot be packed: mlx packs groups of 32 or 64.",
            hint="Load it without llm.kv_bits.",
        )
    return group


class SerialDecoder:
    """A decoder for one row at a time.

    Args:
        network: mlx-lm's module.
        serving: the cache, and whether to guess.
        prefixes: caches of earlier prompts.
        before: called before each step.
    """

    def __init__(
        self,
        network: Any,
        serving: Serving,
        prefixes: PrefixCache | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._network = network
        self._serving = serving
        self._prefixes = prefixes
        self._before = before
        self._row: Row | None = None
        self._cache: list[Any] = []
        self._held = 0  # tokens in the cache
        self._lookup = Lookup()

    def insert(self, row: Row) -> None:
        tokens = row.prompt + row.tokens
        reuse = self._prefixes is not None and isinstance(row, Answer) and row.reuse
        found = self._prefixes.find(tokens) if reuse and self._prefixes is not None else None
        if row.kept is not None:
            self._cache, self._held = row.kept
        elif found is not None:
            self._cache, self._held = found[0], len(found[1])
            if isinstance(row, Answer):
                row.cached = min(self._held, len(row.prompt))
        else:
            self._cache, self._held = caches_for(self._network, self._serving), 0
        self._row = row
        self._lookup = Lookup()

    def step(self, chunk: int) -> Stepped:
        row = self._row
        assert row is not None
        self._before()
        tokens = row.prompt + row.tokens
        began = time.perf_counter()
        left = len(tokens) - self._held
        if left > 1:
            piece = tokens[self._held : self._held + min(chunk, left - 1)]
            self._network(mx.array([piece]), cache=self._cache)
            mx.eval([layer.state for layer in self._cache])
            self._held += len(piece)
            return Stepped(prompt_tokens=len(piece))
        guesses = self._guess(row, tokens)
        logits = self._network(mx.array([tokens[-1:] + guesses]), cache=self._cache)[0]
        if guesses:
            drawn = self._check(row, logits, guesses)
        else:
            drawn = [self._draw(row, tokens, logits[-1:])]
            self._held += 1
        self._lookup.took(len(guesses), len(drawn) - 1, time.perf_counter() - began)
        if isinstance(row, Answer) and self._serving.speculation:
            row.measured = self._lookup.measured
        return Stepped(drawn=drawn)

    def remove(self, rows: Sequence[Row]) -> None:
        row = self._row
        if row is None or not any(row is other for other in rows):
            return
        tokens = (row.prompt + row.tokens)[: self._held]
        if self._prefixes is not None and isinstance(row, Answer) and row.reuse and row.failure is None:
            self._prefixes.add(self._cache, tokens)
        self._row, self._cache = None, []

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        del row  # its answer is bounded, and readers that wait drive it to its end
        return None

    def close(self) -> None:
        self._row, self._cache = None, []

    def _draw(self, row: Row, tokens: list[int], logits: mx.array) -> Drawn:
        context = mx.array(tokens)
        for processor in row.processors:
            logits = processor(context, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen: Any = row.sampler(logprobs).item()
        return Drawn(row, int(chosen), logprobs[0])

    def _guess(self, row: Row, tokens: list[int]) -> list[int]:
        plain = row.sampler is greedy and not row.processors
        if not self._serving.speculation or not plain or not row.tokens:
            return []
        if not all(layer.is_trimmable() for layer in self._cache):
            return []
        return self._lookup.guess(tokens)

    def _check(self, row: Row, logits: mx.array, guesses: list[int]) -> list[Drawn]:
        """The guesses that the model agrees with, and the token after them."""
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen: Any = mx.argmax(logprobs, axis=-1).tolist()
        right = next((at for at, token in enumerate(guesses) if chosen[at] != token), len(guesses))
        for layer in self._cache:
            layer.trim(len(guesses) - right)
        self._held += right + 1
        return [Drawn(row, chosen[at], logprobs[at]) for at in range(right + 1)]


class Lookup:
    """Guesses tokens from where the last ones occurred before, as long as that pays."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._wait = 0
        self._misses = 0
        self._seconds: dict[bool, float] = {}
        self._gain = 2.0  # tokens of a guessing step, smoothed
        self.guessed = self.accepted = 0

    @property
    def measured(self) -> tuple[tuple[str, float], ...]:
        """For the metrics: tokens guessed, and the share that was right."""
        share = self.accepted / self.guessed if self.guessed else 0.0
        return (("speculation_guessed", float(self.guessed)), ("speculation_accepted", share))

    def guess(self, tokens: list[int]) -> list[int]:
        """Tokens that may follow; none while guessing does not pay."""
        for end in range(max(self._indexed, _SHORTEST), len(tokens)):
            for size in range(_SHORTEST, _LONGEST + 1):
                if end >= size:
                    self._seen[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)
        if self._wait > 0:
            self._wait -= 1
            return []
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            at = self._seen.get(tuple(tokens[-size:]))
            if at is not None:
                return tokens[at : at + _GUESSES]
        return []

    def took(self, guessed: int, right: int, seconds: float) -> None:
        """Learn from a step: its guesses, how many were right, its time."""
        kind = guessed > 0
        known = self._seconds.get(kind)
        self._seconds[kind] = seconds if known is None else known + 0.2 * (seconds - known)
        if not guessed:
            return
        self.guessed += guessed
        self.accepted += right
        self._gain += 0.3 * (right + 1 - self._gain)
        cost = self._seconds[True] / self._seconds.get(False, self._seconds[True])
        if right and self._gain > cost:
            self._misses = 0
            return
        self._misses += 1
        self._wait = min(2**self._misses, _PATIENCE)


__all__ = ["Lookup", "SerialDecoder", "Serving", "caches_for"]
