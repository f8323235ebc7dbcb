"""Prompts that are being read: which of them share the next pass, and the pass itself.

Those that fit in the step's budget whole are read together; one that does not is read a piece at a time, into
a cache of its own. All but a prompt's last token is read here: the last one is read by the batch's next pass,
which draws the first token of the answer together with those of the rows that run already. A prompt that only
one pass of its own can read to its end has its first token drawn from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from attrs import define, field

from .batch import Batch, Decodes
from .joining import Company, batch_of, cut, rows_of, states
from .row import Plan, Row
from .shapes import Shapes

MOST = 64  # prompts that are read in one pass


@define(eq=False)
class Reading:
    """A row whose prompt is not read yet.

    Args:
        row: the row.
        tokens: everything that has to be in the cache, and what comes behind it.
        layers: its cache; ``None`` while that is empty.
        held: the tokens in the cache.
        border: after so many tokens `Reads.keep` is told, then reading goes on.
        ready: whether what its passes need is there; else `Reads.prepare` is asked for it.
        shares: whether others may be read in its pass.
        divisible: whether it may be read in pieces, up to its border.
        last: tokens that are left to the batch's next pass: 1, or 0 where the prompt's own pass draws.
    """

    row: Row
    tokens: list[int]
    layers: list[Any] | None = None
    held: list[int] = field(factory=list)
    border: int | None = None
    ready: bool = True
    shares: bool = True
    divisible: bool = True
    last: int = 1

    @property
    def left(self) -> int:
        """Tokens to read here."""
        return len(self.tokens) - len(self.held) - self.last

    @property
    def piece(self) -> int:
        """Tokens to read up to the border."""
        return self.left if self.border is None else self.border - len(self.held)


class Reads(Decodes, Protocol):
    """What the prompts ask of a network."""

    def caches(self) -> list[Any]:
        """The empty caches of a row."""
        ...

    def read(
        self, group: Sequence[Reading], counts: Sequence[int], length: int, layers: list[Any], blank: int = 0
    ) -> mx.array | None:
        """Read the next tokens of each, so many, padded on the right to ``length``.

        ``blank`` more rows are read only to make up the size of the pass; any tokens will do.

        Returns:
            The logits behind the last token of a prompt whose ``last`` is 0, shape (1, vocabulary).
        """
        ...

    def prepare(self, entries: Sequence[Reading]) -> None:
        """Make ready what is not; the row of one for which that is impossible fails."""
        ...

    def keeps(self, entry: Reading) -> bool:
        """Whether `keep` wants the cache of a prompt that is read to its end."""
        ...

    def keep(self, entry: Reading) -> None:
        """Told of a prompt that has come to its border, or to its end; may set the next border."""
        ...


class Readings:
    """The prompts of one batch that wait or are being read.

    Args:
        network: reads them.
        company: which of them may share a pass.
        shapes: which sizes of passes the device has met.
        context: most positions that the model knows, or ``None``.
    """

    def __init__(self, network: Reads, company: Company, shapes: Shapes, context: int | None = None) -> None:
        self._network = network
        self._shapes = shapes
        self._context = context
        self.company = company  # may change between steps
        self._entries: list[Reading] = []
        self.drew = False  # whether the last call of `read` drew first tokens

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

    def lengths(self) -> list[int]:
        """The tokens that are held of each."""
        return [len(entry.held) for entry in self._entries]

    def states(self) -> list[Any]:
        """The arrays of what is read so far."""
        return [states(entry.layers) for entry in self._entries if entry.layers is not None]

    def read(self, plan: Plan, batch: Batch) -> int:
        """Queue the next pass and let the rows that are read whole join the batch; the tokens it reads.

        Prompts that have a pass of their own and are short share a step, if no pass.
        """
        self.drew = False
        found = 0
        while found < plan.tokens:
            group = self._next(plan, plan.tokens - found)
            if waiting := [entry for entry in group if not entry.ready]:
                self._network.prepare(waiting)
                self._entries = [entry for entry in self._entries if entry.row.failure is None]
                group = self._next(plan, plan.tokens - found, ready=True)
            whole = [entry for entry in self._entries if entry.ready and not entry.left]
            if not self.company.together:
                whole = [] if len(batch) else whole[:1]
            if whole:
                for entry in filter(self._network.keeps, whole):  # found under another's name
                    self._network.keep(entry)
                self._join(whole, batch)
            if not group or (len(batch) and not self.company.together):
                break
            found += self._read(group, plan.tokens - found, batch)
            if group[0].shares or group[0].left:
                break
        return found

    def _read(self, group: Sequence[Reading], tokens: int, batch: Batch) -> int:
        """One pass; how many tokens it reads."""
        if len(group) == 1:
            return self._alone(group[0], tokens, batch)
        count = sum(entry.left for entry in group)
        if all(entry.layers is None for entry in group):
            layers = self._from_the_start(group)
        else:
            layers = self._behind(group)
        mx.async_eval(states(layers))  # type: ignore[no-untyped-call]
        self._enter(group, batch, layers)
        return count

    def _next(self, plan: Plan, tokens: int, *, ready: bool = False) -> list[Reading]:
        """The prompts of the next pass: the first in the queue, and those that fit beside it."""
        ranked = sorted(
            (item for item in self._entries if (item.left if item.ready else not ready)),
            key=lambda item: item.row.standing(plan.now, item.left * plan.token_seconds),
        )
        group = ranked[:1]
        if not group or not self.company.together or not _shares(group[0]) or group[0].left > tokens:
            return group
        for entry in ranked[1:]:
            if len(group) < MOST and _shares(entry) and self._may_share(group, entry, tokens, plan.worth):
                group.append(entry)
        return group if self._fills_up(group, tokens, plan.worth) else group[: self._shapes.rows(len(group))]

    def _fills_up(self, group: Sequence[Reading], tokens: int, worth: int | None) -> bool:
        """Whether blank rows up to the next size of a pass cost less than another pass."""
        if not self.company.padded or any(item.layers is not None for item in group):
            return False
        rows, longest = self._shapes.filled(len(group)), max(item.left for item in group)
        return rows * longest <= tokens and (rows - len(group)) * longest <= (worth or 0)

    def _may_share(self, group: Sequence[Reading], entry: Reading, tokens: int, worth: int | None) -> bool:
        lengths = [item.left for item in (*group, entry)]
        padded = len(lengths) * max(lengths)
        if padded > tokens:
            return False
        fresh = all(item.layers is None for item in (*group, entry))
        if min(lengths) == max(lengths):
            return self.company.equal if fresh else self.company.behind
        if not (self.company.padded if fresh else self.company.behind):
            return False
        # a pass less is worth some padding
        more = padded - len(group) * max(lengths[:-1]) - entry.left
        return more <= max(worth or 0, padded // 8)

    def _from_the_start(self, group: Sequence[Reading]) -> list[Any]:
        """Read prompts whole into empty caches; the batch's caches."""
        lengths = [entry.left for entry in group]
        layers = self._network.caches()
        blank = self._shapes.filled(len(group)) - len(group) if self.company.padded else 0
        self._pass(group, lengths, layers, blank)
        if blank:
            for layer in layers:
                layer.keys, layer.values = layer.keys[: len(group)], layer.values[: len(group)]
        for at, (entry, length) in enumerate(zip(group, lengths, strict=True)):
            entry.held = entry.tokens[:length]
            if self._network.keeps(entry):
                entry.layers = rows_of(layers, at, length)
                self._network.keep(entry)
        return batch_of(layers, lengths, self._network.merge)

    def _behind(self, group: Sequence[Reading]) -> list[Any]:
        """Read the rest of prompts behind what each holds; the batch's caches."""
        layers = self._network.merge(
            [self._network.caches() if entry.layers is None else entry.layers for entry in group]
        )
        lengths = [entry.left for entry in group]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in layers:
                layer.prepare(lengths=lengths, right_padding=padding)
        self._shapes.note(len(group), longest, max(len(entry.held) for entry in group) + longest)
        self._network.read(group, lengths, longest, layers)
        if any(padding):
            for layer in layers:
                layer.finalize()
        for entry in group:
            entry.held = entry.tokens[:-1]
        return layers

    def _alone(self, entry: Reading, most: int, batch: Batch) -> int:
        """Read a piece of one prompt; how many tokens it has."""
        if entry.layers is None:
            entry.layers = self._network.caches()
        count = entry.piece
        if entry.divisible:
            count = self._shapes.piece(len(entry.held), count, most)
        logits = self._pass([entry], [count], entry.layers)
        entry.held = entry.tokens[: len(entry.held) + count]
        entry.row.read = min(len(entry.held), len(entry.row.prompt))
        if entry.shares:
            cut(entry.layers, len(entry.held))
        mx.async_eval(states(entry.layers))  # type: ignore[no-untyped-call]
        if len(entry.held) == entry.border:
            entry.border = None
            self._network.keep(entry)
        elif not entry.left and self._network.keeps(entry):
            self._network.keep(entry)
        if not entry.left:
            self._join([entry], batch, None if entry.last else logits)
        return count

    def _pass(
        self, group: Sequence[Reading], counts: Sequence[int], layers: list[Any], blank: int = 0
    ) -> mx.array | None:
        longest = length = max(counts)
        start = len(group[0].held)
        if self.company.padded and group[0].shares:
            length = self._shapes.length(longest)
            if self._context is not None and start + length > self._context:
                length = longest
        self._shapes.note(len(group) + blank, length, start + length)
        return self._network.read(group, counts, length, layers, blank)

    def _join(self, entries: Sequence[Reading], batch: Batch, logits: mx.array | None = None) -> None:
        """Let rows with caches of their own into the batch."""
        rows = [self._network.caches() if entry.layers is None else entry.layers for entry in entries]
        plain = len(rows) == 1 and batch.takes_plain
        layers = rows[0] if plain else self._network.merge(rows)
        self._enter(entries, batch, layers, plain=plain, logits=logits)

    def _enter(
        self,
        entries: Sequence[Reading],
        batch: Batch,
        layers: list[Any],
        *,
        plain: bool = False,
        logits: mx.array | None = None,
    ) -> None:
        for entry in entries:
            self._entries.remove(entry)
        self.drew = self.drew or logits is not None
        batch.join(
            [entry.row for entry in entries],
            [list(entry.held) for entry in entries],
            [entry.tokens[-1] for entry in entries],
            layers,
            plain=plain,
            logits=logits,
        )


def _shares(entry: Reading) -> bool:
    return entry.shares and entry.border is None


__all__ = ["Reading", "Readings", "Reads"]
