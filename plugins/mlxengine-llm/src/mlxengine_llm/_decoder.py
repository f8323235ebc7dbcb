"""The decoder of `mlxengine.toolkit.rows` on mlx-lm's networks and caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention
from mlxengine.toolkit.adapter_rows import adapter_of
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.attention import QuickAttention
from mlxengine.toolkit.batch import Draw
from mlxengine.toolkit.decoding import TogetherDecoder
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.joining import matrix, merged
from mlxengine.toolkit.prefix import SMALLEST, PrefixCache, snapshot, trimmable
from mlxengine.toolkit.reading import Reading
from mlxengine.toolkit.rows import Plan, Row, Stepped
from mlxengine.toolkit.shapes import Shapes

from ._trial import Trial


class BatchDecoder(TogetherDecoder):
    """The rows of one model: those that wait for their prompt, and the batch that decodes.

    Args:
        network: mlx-lm's module.
        adapters: of the network; each row uses its own.
        prefixes: keeps the caches of an adapter's rows that leave, for prompts that begin alike.
        caches: makes the empty caches of a row.
        shapes: which sizes of passes the device has met.
        trial: which rows may share a pass.
        grammars: of the model's rows, told before each step which tokens were drawn.
        context: most positions that the model knows, or ``None``.
        drawing: see `mlxengine.toolkit.batch.Batch`.
    """

    def __init__(
        self,
        network: Any,
        adapters: Adapters,
        prefixes: Callable[[str | None], PrefixCache | None],
        caches: Callable[[], list[Any]],
        shapes: Shapes,
        trial: Trial,
        grammars: Grammars | None = None,
        context: int | None = None,
        drawing: Draw | None = None,
    ) -> None:
        self._prefixes = prefixes
        self._trial = trial
        passes = _Passes(network, adapters, caches, self._checkpoint)
        super().__init__(passes, trial.company, shapes, grammars, context=context, drawing=drawing)

    def insert(self, row: Row) -> None:
        tokens = row.prompt + row.tokens
        layers, held = row.kept or self._fork(row) or self._prefix(row, tokens) or (None, [])
        prefixes = self._kept_by(row)
        border = prefixes.parting(tokens, len(held)) if prefixes is not None else None
        self._reading.add(Reading(row, tokens, layers, list(held), border))

    def step(self, plan: Plan) -> Stepped:
        if len(self) > 1:
            tried = self._trial.hold()
            self._reading.company = self._trial.company  # texts that are scored may have held it already
            if tried:
                return Stepped()  # the time that it took is nobody's pace
        return super().step(plan)

    def _left(self, row: Row, entry: Reading | None) -> None:
        if entry is not None:
            self._keep(row, entry.layers or [], entry.held)
        elif self._kept_by(row) is not None:
            at = self._batch.index(row)
            assert at is not None
            self._keep(row, *self._batch.cache(at))

    def _kept_by(self, row: Row) -> PrefixCache | None:
        """Where a row's cache comes from and goes to."""
        return self._prefixes(adapter_of(row)) if row.reuse else None

    def _keep(self, row: Row, layers: list[Any], tokens: Sequence[int], *, goes_on: bool = False) -> None:
        """Keep the cache of a row, for prompts that begin alike."""
        prefixes = self._kept_by(row)
        if prefixes is not None and layers and row.failure is None:
            prefixes.add(layers, tokens, goes_on=goes_on)

    def _checkpoint(self, entry: Reading) -> None:
        """Keep what was read so far: a cache that cannot be cut back serves only from where it stands."""
        assert entry.layers is not None
        self._keep(entry.row, entry.layers, entry.held, goes_on=True)

    def _fork(self, row: Row) -> tuple[list[Any], list[int]] | None:
        """The cache of a row with the same prompt, cut back to it."""
        at = None if row.after is None else self._batch.index(row.after)
        if at is None or row.tokens or len(row.prompt) <= SMALLEST:
            return None
        layers, held = self._batch.cache(at)
        surplus = len(held) - (len(row.prompt) - 1)
        if surplus < 0 or not trimmable(layers):
            return None
        layers = snapshot(layers)
        for layer in layers:
            layer.trim(surplus)
        row.cached = len(row.prompt) - 1
        return layers, row.prompt[:-1]

    def _prefix(self, row: Row, tokens: list[int]) -> tuple[list[Any], list[int]] | None:
        prefixes = self._kept_by(row)
        found = prefixes.find(tokens) if prefixes is not None else None
        if found is not None and not (row.tokens or row.read):
            row.cached = min(len(found[1]), len(row.prompt))
        return found


class _Passes:
    """Passes over tokens, each row with its adapter; a `mlxengine.toolkit.reading.Reads`."""

    def __init__(
        self,
        network: Any,
        adapters: Adapters,
        caches: Callable[[], list[Any]],
        keep: Callable[[Reading], None],
    ) -> None:
        self._network = network
        self._adapters = adapters
        self._attention = QuickAttention(network, scaled_dot_product_attention)
        self.caches = caches
        self.keep = keep

    def merge(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        return merged(rows)

    def decode(self, rows: Sequence[Row], tokens: mx.array, layers: list[Any]) -> mx.array:
        self._adapters.use(*map(adapter_of, rows))
        with self._attention:
            logits: mx.array = self._network(tokens, cache=layers)[:, -1, :]
        return logits

    def read(
        self, group: Sequence[Reading], counts: Sequence[int], length: int, layers: list[Any], blank: int = 0
    ) -> mx.array | None:
        pieces = [
            entry.tokens[len(entry.held) : len(entry.held) + count]
            for entry, count in zip(group, counts, strict=True)
        ]
        pieces += pieces[-1:] * blank
        adapters = [adapter_of(entry.row) for entry in group]
        self._adapters.use(*adapters, *adapters[-1:] * blank)
        with self._attention:
            self._network(matrix(pieces, length), cache=layers)
        return None

    def prepare(self, entries: Sequence[Reading]) -> None:
        """All of them are."""

    def keeps(self, entry: Reading) -> bool:
        del entry  # caches are kept when rows leave
        return False


__all__ = ["BatchDecoder"]
