"""Guessing tokens ahead: from the text so far, or by a smaller model.

Several guesses are checked in one forward pass, which gives the tokens of plain greedy decoding whatever was
guessed (Leviathan et al. 2023). The text so far is a guesser that costs nothing: where the last tokens
occurred before, those that followed them then are guessed now (prompt lookup; Saxena 2023).
"""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

_SHORTEST, _LONGEST = 2, 24  # tokens that must have occurred before, and that are compared
_PLACES = 64  # where they did, the latest ones
_MOST = 8
_PATIENCE = 64


class Payoff:
    """How many tokens to guess next, told from what earlier guesses gained and cost.

    A pass over two tokens costs hardly more than one over a single token, so guessing begins with one token.
    The number doubles when all were right and falls when they gained less than their time; when they gained
    nothing twice in a row, the next attempt waits, each time twice as long.
    """

    def __init__(self) -> None:
        self._count = 1
        self._wait = 0
        self._misses = 0
        self._seconds: dict[int, float] = {}  # of a pass, by the number of guesses in it
        self.guessed = self.accepted = 0

    @property
    def measured(self) -> tuple[tuple[str, float], ...]:
        """For the metrics: tokens guessed, and the share that was right."""
        share = self.accepted / self.guessed if self.guessed else 0.0
        return (("speculation_guessed", float(self.guessed)), ("speculation_accepted", share))

    def count(self) -> int:
        """Tokens to guess for the next pass; 0 while guessing does not pay."""
        if 0 not in self._seconds:
            return 0  # what a plain pass takes has to be known first
        if self._wait > 0:
            self._wait -= 1
            return 0
        return self._count

    def took(self, guessed: int, right: int, seconds: float) -> None:
        """Learn from a pass: its guesses, how many were right, the time of guessing and checking them."""
        known = self._seconds.get(guessed)
        # the smaller one is the truer one: what else the machine does only adds
        self._seconds[guessed] = seconds if known is None else min(seconds, known + 0.1 * (seconds - known))
        if not guessed:
            return
        self.guessed += guessed
        self.accepted += right
        pays = right + 1 > self._seconds[guessed] / self._seconds[0]
        if right == guessed and pays:
            self._count = min(2 * self._count, _MOST)
            self._misses = 0
        elif right and pays:
            self._count = max(1, right)
        else:
            self._count = max(1, min(self._count // 2, right))
            self._misses += 1
            self._wait = min(2**self._misses - 2, _PATIENCE)


class Guesser(Protocol):
    """Where guesses come from."""

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """At most ``count`` tokens that may follow."""
        ...

    def behind(self, tokens: list[int]) -> int:
        """Tokens to read before it can guess."""
        ...

    def read(self, tokens: list[int], count: int) -> int:
        """Read at most ``count`` of them; returns how many."""
        ...


class Lookup:
    """Guesses what followed the last tokens before: where most of them were the same, and lately."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], list[int]] = {}  # positions that follow two tokens
        self._indexed = 0

    def guess(self, tokens: list[int], count: int) -> list[int]:
        for end in range(max(self._indexed, _SHORTEST), len(tokens)):
            self._after.setdefault(tuple(tokens[end - _SHORTEST : end]), []).append(end)
        self._indexed = len(tokens)
        places = self._after.get(tuple(tokens[-_SHORTEST:]), [])[-_PLACES:]
        if not places:
            return []
        at = max(reversed(places), key=lambda end: _alike(tokens, end))
        return tokens[at : at + count]

    def behind(self, tokens: list[int]) -> int:
        del tokens
        return 0

    def read(self, tokens: list[int], count: int) -> int:
        del tokens, count
        return 0


class Draft:
    """Guesses what a smaller model of the same vocabulary would say.

    Args:
        network: the smaller model, mlx-lm's module.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self._layers: list[Any] = []
        self._held: list[int] = []  # the tokens in its cache

    def guess(self, tokens: list[int], count: int) -> list[int]:
        self._rewind(tokens)
        found: list[int] = []
        piece = tokens[len(self._held) :]
        while len(found) < count:
            logits = self._network(mx.array([piece]), cache=self._layers)[:, -1, :]
            self._held += piece
            chosen: Any = mx.argmax(logits, axis=-1).item()
            piece = [int(chosen)]
            found += piece
        return found

    def behind(self, tokens: list[int]) -> int:
        return len(tokens) - 1 - _common(self._held, tokens)

    def read(self, tokens: list[int], count: int) -> int:
        self._rewind(tokens)
        piece = tokens[len(self._held) : min(len(self._held) + count, len(tokens) - 1)]
        self._network(mx.array([piece]), cache=self._layers)
        mx.eval([layer.state for layer in self._layers])
        self._held += piece
        return len(piece)

    def _rewind(self, tokens: list[int]) -> None:
        """Forget what was guessed wrongly; the last of ``tokens`` always has to be read (again)."""
        from mlx_lm.models.cache import make_prompt_cache

        surplus = len(self._held) - min(_common(self._held, tokens), len(tokens) - 1)
        if not self._layers or (surplus and not all(layer.is_trimmable() for layer in self._layers)):
            self._layers, self._held = make_prompt_cache(self._network), []
        elif surplus:
            for layer in self._layers:
                layer.trim(surplus)
            del self._held[-surplus:]


def _alike(tokens: list[int], end: int) -> int:
    """How many tokens before ``end`` are the last ones again, as far as that matters."""
    most = min(end, _LONGEST)
    return next((i for i in range(_SHORTEST, most) if tokens[end - 1 - i] != tokens[-1 - i]), most)


def _common(held: list[int], tokens: list[int]) -> int:
    if held == tokens[: len(held)]:
        return len(held)
    return next(i for i, (left, right) in enumerate(zip(held, tokens, strict=False)) if left != right)


__all__ = ["Draft", "Guesser", "Lookup", "Payoff"]
