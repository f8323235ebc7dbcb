"""Decode many requests together: all that does not depend on the library that the network is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .._machine.backend import probe
from .batch import Batch, Draw
from .grammar import Grammars
from .joining import Company, states
from .reading import Reading, Readings, Reads
from .row import Drawn, Plan, Row, Stepped
from .shapes import Shapes


def keeps_places() -> bool:
    """Whether a row that is decoded for nobody is cheaper than a change of the batch; not on a CPU."""
    return probe().backend != "cpu"


class TogetherDecoder:
    """The rows of one model: those that wait for their prompt, and the batch that decodes.

    A `mlxengine.toolkit.row.Decoder` but for ``insert``, with which a plugin's adds to ``self._reading``.

    Args:
        network: what the plugin's network is asked for.
        company: which prompts may share a pass.
        shapes: which sizes of passes the device has met.
        grammars: of the model's rows, told before each step which tokens were drawn.
        context: most positions that the model knows, or ``None``.
        plain, drawing: see `Batch`.
    """

    def __init__(
        self,
        network: Reads,
        company: Company,
        shapes: Shapes,
        grammars: Grammars | None = None,
        *,
        context: int | None = None,
        plain: bool = True,
        drawing: Draw | None = None,
    ) -> None:
        self._shapes = shapes
        self._reading = Readings(network, company, shapes, context)
        self._batch = Batch(network, grammars, plain=plain, spares=keeps_places(), drawing=drawing)
        self._behind = 0  # tokens of prompts in passes that nothing has waited for

    def __len__(self) -> int:
        return len(self._reading) + len(self._batch)

    def lengths(self) -> list[list[int]]:
        """The tokens that are held of each row that is read, and of each that decodes; places in caches."""
        batch = self._batch
        places = [getattr(layer, "_idx", getattr(layer, "offset", 0)) for layer in batch.layers[:1]]
        return [self._reading.lengths(), [len(held) for held in batch.held], places]

    @property
    def spare(self) -> int:
        """Places of the batch that nobody is in, each as dear as a row."""
        return self._batch.spare

    def tidy(self) -> None:
        """Give those places up."""
        self._batch.tidy()

    def step(self, plan: Plan) -> Stepped:
        """A token of every row whose prompt is read, and about ``plan.tokens`` of the prompts, in all."""
        waited, queued = self._behind, self._reading.read(plan, self._batch)
        if self._reading.drew:  # the batch hands out what these passes draw
            waited, queued = waited + queued, 0
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
        """Take rows out."""
        for entry in filter(None, map(self._reading.take, rows)):
            self._left(entry.row, entry)
        for row in rows:
            if self._batch.index(row) is not None:
                self._left(row, None)
        self._batch.remove(rows)

    def _left(self, row: Row, entry: Reading | None) -> None:
        """Told of a row that leaves: while its prompt is read, or from the batch, where it still is."""

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        """Take a row out with its cache: the token that is drawn already, and (caches, tokens in them)."""
        at = self._batch.index(row)
        drawn = None if at is None else self._batch.drawn(at)
        if at is None or drawn is None:
            return None
        layers, held = self._batch.cache(at)
        mx.eval(states(layers))
        self._batch.remove([row])
        return drawn, (layers, held)

    def close(self) -> None:
        """Drop everything."""
        self._reading.clear()
        self._batch.remove(self._batch.rows)


__all__ = ["TogetherDecoder", "keeps_places"]
