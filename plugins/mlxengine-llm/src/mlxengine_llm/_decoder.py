"""The decoder of `mlxengine.toolkit.rows` on mlx-lm's networks and caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.rows import Drawn, Plan, Row, Stepped

from ._adapters import Adapters
from ._batch import Batch
from ._caches import own
from ._joining import states
from ._prefix import SMALLEST, PrefixCache, clone, trimmable
from ._reading import Reading, Readings
from ._shapes import Shapes
from ._tags import adapter_of
from ._trial import Trial


class BatchDecoder:
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
    ) -> None:
        self._prefixes = prefixes
        self._shapes = shapes
        self._trial = trial
        self._reading = Readings(network, adapters, caches, self._checkpoint, shapes, trial, context)
        self._batch = Batch(network, adapters, grammars)
        self._behind = 0  # tokens of prompts in passes that nothing has waited for

    def insert(self, row: Row) -> None:
        tokens = row.prompt + row.tokens
        layers, held = row.kept or self._fork(row) or self._prefix(row, tokens) or (None, [])
        if layers is not None:
            layers = [own(layer) for layer in layers]
        prefixes = self._kept_by(row)
        border = prefixes.parting(tokens, len(held)) if prefixes is not None else None
        self._reading.add(Reading(row, tokens, layers, list(held), border))

    def step(self, plan: Plan) -> Stepped:
        if len(self._reading) + len(self._batch) > 1 and self._trial.hold():
            return Stepped()  # the time that it took is nobody's pace
        waited, queued = self._behind, self._reading.read(plan, self._batch)
        drawn = self._batch.step() if len(self._batch) else []
        if drawn:  # from the pass before, which came behind everything that was queued then
            self._behind = queued
        elif len(self._batch):
            self._behind, waited = waited + queued, 0
        else:  # nobody waits for the next piece: this one is waited for
            mx.eval(self._reading.states())
            self._behind, waited, queued = 0, waited + queued, 0
        new = bool(waited) and self._shapes.took_new()
        return Stepped(drawn=drawn, prompt_tokens=waited, queued=queued, new_shape=new)

    def remove(self, rows: Sequence[Row]) -> None:
        for entry in filter(None, map(self._reading.take, rows)):
            if entry.layers is not None:
                self._keep(entry.row, entry.layers, entry.held)
        for row in rows:
            at = self._batch.index(row)
            if at is not None and self._kept_by(row) is not None:
                self._keep(row, *self._batch.cache(at))
        self._batch.remove(rows)

    def _kept_by(self, row: Row) -> PrefixCache | None:
        """Where a row's cache comes from and goes to."""
        return self._prefixes(adapter_of(row)) if isinstance(row, Answer) and row.reuse else None

    def _keep(self, row: Row, layers: list[Any], tokens: Sequence[int]) -> None:
        """Keep the cache of a row that leaves, for prompts that begin alike."""
        prefixes = self._kept_by(row)
        if prefixes is not None and layers and row.failure is None:
            prefixes.add(layers, tokens)

    def _checkpoint(self, entry: Reading) -> None:
        """Keep what was read so far: a cache that cannot be cut back serves only from where it stands."""
        assert entry.layers is not None
        self._keep(entry.row, [clone(layer) for layer in entry.layers], entry.held)

    def _fork(self, row: Row) -> tuple[list[Any], list[int]] | None:
        """The cache of a row with the same prompt, cut back to it."""
        at = None if row.after is None else self._batch.index(row.after)
        if at is None or row.tokens or len(row.prompt) <= SMALLEST:
            return None
        layers, held = self._batch.cache(at)
        surplus = len(held) - (len(row.prompt) - 1)
        if surplus < 0 or not all(map(trimmable, layers)):
            return None
        layers = [clone(layer) for layer in layers]
        for layer in layers:
            layer.trim(surplus)
        if isinstance(row, Answer):
            row.cached = len(row.prompt) - 1
        return layers, row.prompt[:-1]

    def _prefix(self, row: Row, tokens: list[int]) -> tuple[list[Any], list[int]] | None:
        prefixes = self._kept_by(row)
        found = prefixes.find(tokens) if prefixes is not None else None
        if found is not None and isinstance(row, Answer):
            row.cached = min(len(found[1]), len(row.prompt))
        return found

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        at = self._batch.index(row)
        drawn = None if at is None else self._batch.drawn(at)
        if at is None or drawn is None:
            return None
        layers, held = self._batch.cache(at)
        mx.eval(states(layers))
        self._batch.remove([row])
        return drawn, (layers, held)

    def close(self) -> None:
        self._reading.clear()
        self._batch.remove(self._batch.rows)


__all__ = ["BatchDecoder"]
