"""One row at a time, for what a shared batch cannot do: bounded KV caches, and speculation.

mlx-lm's batch of bounded caches has no place for the first tokens, which a row alone keeps; and rows that
guess would advance by different numbers of tokens.

Only greedy rows without processors speculate, so that tokens stay those of plain decoding.
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

from ._adapters import Adapters
from ._prefix import PrefixCache
from ._speculation import Draft, Guesser, Lookup, Payoff
from ._tags import adapter_of

_KEPT = 4  # a bounded cache keeps the first tokens, which attention leans on (Xiao et al. 2023)


@frozen(kw_only=True)
class Serving:
    """How a model's caches are kept, and whether it guesses; the defaults ask for nothing.

    Args:
        kv_bits: bits of the key-value cache.
        kv_tokens: most tokens in the cache; older ones but the first four are forgotten.
        speculation: guess tokens from the text so far.
        draft_model: guess tokens with this smaller model.
    """

    kv_bits: int | None = None
    kv_tokens: int | None = None
    speculation: bool = False
    draft_model: str | None = None

    @property
    def speculates(self) -> bool:
        return self.speculation or self.draft_model is not None

    @property
    def serial(self) -> bool:
        return self.kv_tokens is not None or self.speculates


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
        adapters: of the network.
        prefixes: caches of the earlier prompts of an adapter.
        draft: the smaller model that guesses, mlx-lm's module.
    """

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
        prefixes = self._prefixes(adapter_of(row)) if isinstance(row, Answer) and row.reuse else None
        found = prefixes.find(tokens) if prefixes is not None else None
        if row.kept is not None:
            self._cache, self._held = row.kept
        elif found is not None:
            self._cache, self._held = found[0], len(found[1])
            if isinstance(row, Answer):
                row.cached = min(self._held, len(row.prompt))
        else:
            self._cache, self._held = caches_for(self._network, self._serving), 0
        self._row = row
        self._guesser = Lookup() if self._draft is None else Draft(self._draft)
        self._payoff = Payoff()

    def step(self, chunk: int) -> Stepped:
        row = self._row
        assert row is not None
        self._adapters.use(adapter_of(row))
        tokens = row.prompt + row.tokens
        began = time.perf_counter()
        left = len(tokens) - self._held
        if left > 1:
            piece = tokens[self._held : self._held + min(chunk, left - 1)]
            self._network(mx.array([piece]), cache=self._cache)
            mx.eval([layer.state for layer in self._cache])
            self._held += len(piece)
            return Stepped(prompt_tokens=len(piece))
        guesses: list[int] = []
        if self._may_guess(row):
            if self._guesser.behind(tokens) > chunk:
                read = self._guesser.read(tokens, chunk)
                return Stepped(prompt_tokens=read)
            count = self._payoff.count()
            guesses = self._guesser.guess(tokens, count) if count else []
        logits = self._network(mx.array([tokens[-1:] + guesses]), cache=self._cache)[0]
        if guesses:
            drawn = self._check(row, logits, guesses)
        else:
            drawn = [self._draw(row, tokens, logits[-1:])]
            self._held += 1
        self._payoff.took(len(guesses), len(drawn) - 1, time.perf_counter() - began)
        if isinstance(row, Answer) and self._serving.speculates:
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
        prefixes = self._prefixes(adapter_of(row)) if isinstance(row, Answer) and row.reuse else None
        if prefixes is not None and row.failure is None:
            prefixes.add(self._cache, tokens)
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

    def _may_guess(self, row: Row) -> bool:
        if not self._serving.speculates or row.sampler is not greedy or row.processors or not row.tokens:
            return False
        return all(layer.is_trimmable() for layer in self._cache)

    def _check(self, row: Row, logits: mx.array, guesses: list[int]) -> list[Drawn]:
        """The guesses that the model agrees with, and the token after them."""
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen: Any = mx.argmax(logprobs, axis=-1).tolist()
        right = next((at for at, token in enumerate(guesses) if chosen[at] != token), len(guesses))
        for layer in self._cache:
            layer.trim(len(guesses) - right)
        self._held += right + 1
        return [Drawn(row, chosen[at], logprobs[at]) for at in range(right + 1)]


__all__ = ["SerialDecoder", "Serving", "caches_for"]
