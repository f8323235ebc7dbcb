"""Whether rows may share passes, tried on the loaded weights the first time that two of them would.

A cache's class tells what cannot work, not what does: networks read positions past their caches, carry states
that take padding in, or leave masks out. So a few tokens are read and decoded in each of the ways that a
batch uses, and the logits are compared with those of each row alone. A way that was not proven is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import evolve
from mlx.utils import tree_flatten

from ..errors import out_of_memory
from .dtype import precise
from .joining import Company, Merge, batch_of, matrix, merged

EXACT = 1e-3
"""Largest difference of logits in fp32 on a CPU, as a share of their own spread (root mean squares).

Padding that reaches a state, or a lost mask, makes it 0.07 to 1.4 in tiny models of random weights, and what
is right 2e-6 at most."""

ROUGH, ROUGHEST = 0.03, 0.1
"""The same where products are rounded to 16 bits or kernels differ with the shape of a batch: four times what
reading a prompt in two pieces changes, within these bounds. A model on the border between two experts may
take either one there, so a difference counts only if it is found with other tokens too."""

_LENGTHS = (6, 17, 17)  # more padding than the kernels of convolutions are wide
_FIRST = (3, 5, 5)  # so many tokens of each are read alone where the rest is read behind caches


class Trial:
    """What was found out about a network.

    Args:
        network: an ``mlx.nn.Module``, its weights evaluated; its tokens have shape (rows, n), its logits
            (rows, n, vocabulary). A subclass may run it another way.
        caches: makes the empty caches of a row.
        company: what the caches, and how they are used, allow.
        log: is told what was found.
        told: called once with the reason if rows cannot decode together, before the first two would.
        merge: makes a batch's caches of those of single rows.
        avoid: ids that are not tokens of text.
        plain: called before the passes, whose rows use no adapter.
    """

    def __init__(
        self,
        network: Any,
        caches: Callable[[], list[Any]],
        company: Company,
        *,
        log: logging.Logger,
        told: Callable[[str], None] = lambda _why: None,
        merge: Merge = merged,
        avoid: frozenset[int] = frozenset(),
        plain: Callable[[], None] = lambda: None,
    ) -> None:
        self._network = network
        self._caches = caches
        self._log = log
        self._told = told
        self._merge = merge
        self._avoid = avoid
        self._plain = plain
        self.company = company
        self.done = False
        if not self.company.together:
            self._alone("its caches cannot be merged into a batch's")

    def __str__(self) -> str:
        """How prompts are read, for people."""
        if not self.company.together:
            return "one at a time"
        names = {"padded": "padded", "equal": "equal lengths", "behind": "behind caches"}
        found = [words for name, words in names.items() if getattr(self.company, name)]
        return "together; prompts " + (", ".join(found) or "one at a time")

    def hold(self) -> bool:
        """Try what was not tried yet; whether that took passes."""
        if self.done:
            return False
        self.done = True
        self._plain()
        with precise(self._network):
            self._try()
        return True

    def _try(self) -> None:
        allowed = self.company
        if not self._holds(self._joined, (0, 1)):
            self._alone("a batch changes its tokens")
            return
        padded = allowed.padded and self._holds(self._padded, (0, 1))
        self.company = evolve(
            allowed,
            padded=padded,
            equal=padded or (allowed.equal and self._holds(self._padded, (1, 2))),
            behind=allowed.behind and self._holds(self._behind, (0, 1)),
        )
        if self.company != allowed:
            self._log.info("Prompts are read apart where a pass for several was wrong: %s", self)

    def _alone(self, why: str) -> None:
        self.done = True
        self.company = Company(padded=False, equal=False, behind=False, together=False)
        self._log.warning("Requests are served one at a time: %s", why)
        self._told(why)

    def _holds(self, way: Callable[[Sequence[list[int]]], mx.array], rows: Sequence[int]) -> bool:
        """Whether reading the rows in such a way gives each what it gets alone."""
        exact = _exact(self._network, self._caches())
        for attempt in range(1 if exact else 3):
            prompts = [self._tokens(row, attempt) for row in rows]
            try:
                wanted = mx.concatenate([self._solo(prompt) for prompt in prompts])
            except Exception as error:
                self._forgiven("alone", error)
                return True  # requests will say what is wrong with it
            try:
                worst = _difference(way(prompts), wanted)
                allowed = EXACT if exact else self._rough(prompts, wanted)
            except Exception as error:
                self._forgiven(way.__name__, error)
                return False
            self._log.debug("%s: %.2g of %.2g", way.__name__, worst, allowed)
            if worst <= allowed:
                return True
        return False

    def _forgiven(self, what: str, error: Exception) -> None:
        if out_of_memory(error):
            raise error
        self._log.debug("%s failed: %r", what, error)

    def _tokens(self, row: int, attempt: int) -> list[int]:
        """Ids that every vocabulary has."""
        ids = [token for token in range(3, 53) if token not in self._avoid]
        return [ids[(7 * at * at + 11 * row + 5 * attempt + at) % len(ids)] for at in range(_LENGTHS[row])]

    def begin(self, pieces: Sequence[Sequence[int]], layers: list[Any]) -> None:
        """Read pieces into empty caches in one pass, padded on the right to the longest."""
        self._network(matrix(pieces, max(map(len, pieces))), cache=layers)

    def follow(self, tokens: mx.array, layers: list[Any]) -> mx.array:
        """Logits of tokens, both of shape (rows, n, …), behind what the caches hold."""
        found: mx.array = self._network(tokens, cache=layers)
        return found

    def _solo(self, prompt: Sequence[int]) -> mx.array:
        return self._decode([prompt], self._read(prompt[:-1]))

    def _read(self, tokens: Sequence[int]) -> list[Any]:
        layers = self._caches()
        self.begin([tokens], layers)
        return layers

    def _rough(self, prompts: Sequence[list[int]], wanted: mx.array) -> float:
        """What may differ, told from what rounding does to a prompt that is read alone in two pieces."""
        found = []
        for prompt in prompts:
            layers = self._read(prompt[:2])
            self.follow(mx.array([prompt[2:-1]]), layers)
            found.append(self._decode([prompt], layers))
        return min(max(4 * _difference(mx.concatenate(found), wanted), ROUGH), ROUGHEST)

    def _decode(self, prompts: Sequence[Sequence[int]], layers: list[Any]) -> mx.array:
        """Logits behind the last token of each, shape (rows, vocabulary)."""
        found = self.follow(mx.array([prompt[-1:] for prompt in prompts]), layers)[:, -1]
        mx.eval(found)
        return found

    def _joined(self, prompts: Sequence[list[int]]) -> mx.array:
        """Each is read alone; then the second joins the first."""
        layers, *others = (self._merge([self._read(prompt[:-1])]) for prompt in prompts)
        for other in others:
            for layer, more in zip(layers, other, strict=True):
                layer.extend(more)
        return self._decode(prompts, layers)

    def _padded(self, prompts: Sequence[list[int]]) -> mx.array:
        """They are read in one pass from the start, padded if they differ in length."""
        pieces = [prompt[:-1] for prompt in prompts]
        lengths = [len(piece) for piece in pieces]
        layers = self._caches()
        self.begin(pieces, layers)
        return self._decode(prompts, batch_of(layers, lengths, self._merge))

    def _behind(self, prompts: Sequence[list[int]]) -> mx.array:
        """Their beginnings are read alone, the rest in one pass."""
        firsts = [_FIRST[_LENGTHS.index(len(prompt))] for prompt in prompts]
        layers = self._merge([self._read(p[:first]) for p, first in zip(prompts, firsts, strict=True)])
        pieces = [p[first:-1] for p, first in zip(prompts, firsts, strict=True)]
        lengths = [len(piece) for piece in pieces]
        padding = [max(lengths) - length for length in lengths]
        for layer in layers:
            layer.prepare(lengths=lengths, right_padding=padding)
        self.follow(matrix(pieces, max(lengths)), layers)
        for layer in layers:
            layer.finalize()
        return self._decode(prompts, layers)


def _difference(found: mx.array, wanted: mx.array) -> float:
    """The worst row's, as a share of the spread of its logits; infinite where others are finite."""
    found, wanted = found.astype(mx.float32), wanted.astype(mx.float32)
    finite = mx.isfinite(wanted)  # some networks rule tokens out by themselves
    if not mx.array_equal(mx.isfinite(found), finite):
        return float("inf")
    found, wanted = (mx.where(finite, part, 0.0) for part in (found, wanted))
    spread = mx.maximum(mx.std(wanted, axis=-1), 1e-12)
    worst: Any = mx.max(mx.sqrt(mx.mean(mx.square(found - wanted), axis=-1)) / spread).item()
    return float(worst)


def _exact(network: Any, layers: Sequence[Any]) -> bool:
    parameters: Any = tree_flatten(network.parameters())
    rounded = any(value.dtype in (mx.float16, mx.bfloat16) for _, value in parameters)
    packed = any(type(layer).__name__ == "PackedKVCache" for layer in layers)
    return mx.default_device().type == mx.DeviceType.cpu and not rounded and not packed


__all__ = ["Trial"]
