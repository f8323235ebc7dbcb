"""Prompts that are being read: which of them share the next pass, and the pass itself.

Those that fit in the step's budget whole are read together; one that does not is read a piece at a time, into
a cache of its own. All but a prompt's last token is read here: the last one is read by the batch's next pass,
which draws the first token of the answer together with those of the rows that run already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import define
from mlxengine.toolkit.rows import Plan, Row

from ._adapters import Adapters
from ._batch import Batch, merged
from ._joining import Company, batch_of, cut, matrix, states
from ._shapes import Shapes
from ._tags import adapter_of
from ._trial import Trial

MOST = 64  # prompts that are read in one pass


@define(eq=False)
class Reading:
    """A row whose prompt is not read yet.

    Args:
        row: the row.
        tokens: everything that has to be in the cache, but for the last, which the batch reads.
        layers: its cache; ``None`` while that is empty.
        held: the tokens in the cache.
        border: after so many tokens the cache is kept for others, then reading goes on.
    """

    row: Row
    tokens: list[int]
    layers: list[Any] | None
    held: list[int]
    border: int | None = None

    @property
    def left(self) -> int:
        """Tokens to read, the last one left out."""
        return len(self.tokens) - len(self.held) - 1

    @property
    def piece(self) -> list[int]:
        """These tokens, up to the border."""
        return self.tokens[len(self.held) : len(self.tokens) - 1 if self.border is None else self.border]


class Readings:
    """The prompts of one batch that wait or are being read.

    Args:
        network: mlx-lm's module.
        adapters: of the network.
        caches: makes the empty caches of a row.
        keep: told of a prompt that has come to its border.
        shapes: which sizes of passes the device has met.
        trial: which prompts may share a pass.
        context: most positions that the model knows, or ``None``.
    """

    def __init__(
        self,
        network: Any,
        adapters: Adapters,
        caches: Callable[[], list[Any]],
        keep: Callable[[Reading], None],
        shapes: Shapes,
        trial: Trial,
        context: int | None = None,
    ) -> None:
        self._network = network
        self._keep = keep
        self._caches = caches
        self._adapters = adapters
        self._shapes = shapes
        self._context = context
        self._trial = trial
        self._entries: list[Reading] = []

    @property
    def _company(self) -> Company:
        return self._trial.company

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Reading) -> None:
        """Queue a prompt."""
        self._entries.append(entry)

    def take(self, row: Row) -> Reading | None:
        """Remove the entry of a row, if there is one."""
        entry = next((item for item in self._entries if item.row is row), None)
        if entry is not None:
            self._entries.remove(entry)
        return entry

    def clear(self) -> None:
        """Forget all of them."""
        self._entries.clear()

    def states(self) -> list[Any]:
        """The arrays of what is read so far."""
        return [states(entry.layers) for entry in self._entries if entry.layers is not None]

    def read(self, plan: Plan, batch: Batch) -> int:
        """Queue the next pass and let the rows that are read whole join the batch; the tokens it reads."""
        whole = [entry for entry in self._entries if not entry.left]
        if not self._company.together:
            whole = [] if len(batch) else whole[:1]
        if whole:
            self._join(whole, batch)
        if not self._company.together and len(batch):
            return 0
        group = self._next(plan)
        if not group:
            return 0
        first = group[0]
        if len(group) == 1:
            count = self._alone(first, plan.tokens)
            if not first.left:
                self._join(group, batch)
            return count
        if all(entry.layers is None for entry in group):
            layers = self._from_the_start(group)
        else:
            layers = self._behind(group)
        mx.async_eval(states(layers))  # type: ignore[no-untyped-call]
        count = sum(entry.left for entry in group)
        for entry in group:
            entry.held = entry.tokens[:-1]
        self._enter(group, batch, layers)
        return count

    def _next(self, plan: Plan) -> list[Reading]:
        """The prompts of the next pass: the first in the queue, and those that fit beside it."""
        ranked = sorted(
            self._entries, key=lambda item: item.row.standing(plan.now, item.left * plan.token_seconds)
        )
        group = ranked[:1]
        alone = not self._company.together
        if not group or alone or group[0].border is not None or group[0].left > plan.tokens:
            return group
        for entry in ranked[1:]:
            if len(group) < MOST and entry.border is None and self._may_share(group, entry, plan):
                group.append(entry)
        return group

    def _may_share(self, group: Sequence[Reading], entry: Reading, plan: Plan) -> bool:
        lengths = [item.left for item in (*group, entry)]
        padded = len(lengths) * max(lengths)
        if padded > plan.tokens:
            return False
        fresh = all(item.layers is None for item in (*group, entry))
        if min(lengths) == max(lengths):
            return self._company.equal if fresh else self._company.behind
        if not (self._company.padded if fresh else self._company.behind):
            return False
        # a pass less is worth some padding
        more = padded - len(group) * max(lengths[:-1]) - entry.left
        return more <= max(plan.worth or 0, padded // 8)

    def _from_the_start(self, group: Sequence[Reading]) -> list[Any]:
        """Read prompts whole into empty caches; the batch's caches."""
        lengths = [entry.left for entry in group]
        layers = self._caches()
        self._pass([entry.piece for entry in group], layers, 0, group)
        return batch_of(layers, lengths)

    def _behind(self, group: Sequence[Reading]) -> list[Any]:
        """Read the rest of prompts behind what each holds; the batch's caches."""
        layers = merged([self._caches() if entry.layers is None else entry.layers for entry in group])
        pieces = [entry.piece for entry in group]
        lengths = [len(piece) for piece in pieces]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in layers:
                layer.prepare(lengths=lengths, right_padding=padding)
        self._use(group)
        self._shapes.note(len(group), longest, max(len(entry.held) for entry in group) + longest)
        self._network(matrix(pieces, longest), cache=layers)
        if any(padding):
            for layer in layers:
                layer.finalize()
        return layers

    def _alone(self, entry: Reading, most: int) -> int:
        """Read a piece of one prompt; how many tokens it has."""
        if entry.layers is None:
            entry.layers = self._caches()
        piece = entry.piece[:most]
        self._pass([piece], entry.layers, len(entry.held), [entry])
        entry.held = entry.held + piece
        cut(entry.layers, len(entry.held))
        mx.async_eval(states(entry.layers))  # type: ignore[no-untyped-call]
        if len(entry.held) == entry.border:
            entry.border = None
            self._keep(entry)
        return len(piece)

    def _pass(
        self, pieces: Sequence[Sequence[int]], layers: list[Any], start: int, group: Sequence[Reading]
    ) -> None:
        longest = max(map(len, pieces))
        length = longest
        if self._company.padded and self._trial.done:
            length = self._shapes.length(longest)
            if self._context is not None and start + length > self._context:
                length = longest
        self._use(group)
        self._shapes.note(len(pieces), length, start + length)
        self._network(matrix(pieces, length), cache=layers)

    def _use(self, group: Sequence[Reading]) -> None:
        self._adapters.use(*(adapter_of(entry.row) for entry in group))

    def _join(self, entries: Sequence[Reading], batch: Batch) -> None:
        """Let rows with caches of their own into the batch."""
        rows = [self._caches() if entry.layers is None else entry.layers for entry in entries]
        plain = len(rows) == 1 and not len(batch)
        self._enter(entries, batch, rows[0] if plain else merged(rows))

    def _enter(self, entries: Sequence[Reading], batch: Batch, layers: list[Any]) -> None:
        for entry in entries:
            self._entries.remove(entry)
        batch.join(
            [entry.row for entry in entries],
            [list(entry.held) for entry in entries],
            [entry.tokens[-1] for entry in entries],
            layers,
        )


__all__ = ["Reading", "Readings"]
