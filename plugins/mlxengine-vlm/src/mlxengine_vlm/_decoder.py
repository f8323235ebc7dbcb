"""Decodes the rows of one vision-language model together, and reads their prompts.

mlx-vlm's own batch generator takes the first request's sampler for all rows and prefills several prompts
in one padded forward, where deepstack features and masks of different pictures get mixed. Here only prompts
share a pass whose language model takes nothing but embeddings and positions, into caches that padding does
not disturb; every other prompt is read by itself. Each row keeps its own sampler and processors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
from attrs import define
from mlxengine.toolkit.adapter_rows import AdaptedAnswer, adapter_of
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.decoding import TogetherDecoder
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.joining import Company
from mlxengine.toolkit.prefix import PrefixCache, trimmable
from mlxengine.toolkit.reading import Reading
from mlxengine.toolkit.rows import Plan, Row, Stepped
from mlxengine.toolkit.shapes import Shapes

from ._language import NOTHING, Language
from ._prefill import Prefill
from ._sight import Sight
from ._trial import Trial


class VisionRow(Row):
    """A row whose prompt may have media.

    ``sight`` makes the language model's inputs for the prompt; ``media`` names the content that the
    placeholders stand for, in order; ``deltas`` is how far positions run ahead of tokens (M-RoPE), shape
    (1, 1), once that is known; ``crossed`` and ``restarts`` are as in `Prefill`.
    """

    sight: Sight
    media: tuple[str, ...] = ()
    deltas: Any = None
    crossed: Mapping[str, Any] = NOTHING
    restarts = False

    @property
    def keeps(self) -> bool:
        """Whether later prompts may start behind its cache."""
        return self.reuse and self.restarts and self.failure is None


class VisionAnswer(AdaptedAnswer, VisionRow):
    """An answer to a prompt that may have media."""


@define(eq=False, kw_only=True)
class VisionReading(Reading):
    """A prompt that is being read; ``plan`` holds what is left of it, ``None`` where it was read before."""

    plan: Prefill | None = None


class VisionDecoder(TogetherDecoder):
    """The decoding batch and the queue of prompts of one model; a `mlxengine.toolkit.rows.Decoder`.

    Args:
        language: runs the network's language model.
        adapters: of the network; each row uses its own.
        prefixes: where caches of an adapter's prompts are kept for later ones, or ``None``.
        grammars: of the model's rows, told before each step which tokens were drawn.
        shapes: which sizes of passes the device has met.
        look: makes the media's features of several prompts.
        trial: which rows may share a pass.
        context: most positions that the model knows, or ``None``.
    """

    def __init__(
        self,
        language: Language,
        adapters: Adapters,
        prefixes: Callable[[str | None], PrefixCache | None],
        grammars: Grammars | None,
        shapes: Shapes,
        look: Callable[[Sequence[Sight]], None],
        trial: Trial,
        context: int | None = None,
    ) -> None:
        self._trial = trial
        self._passes = _Passes(language, adapters, prefixes, shapes, look)
        self._passes.together = trial.company.equal
        caches = Company.of(self._passes.caches())
        plain = caches.equal or caches.behind or not trial.company.together
        super().__init__(self._passes, trial.company, shapes, grammars, context=context, plain=plain)

    def step(self, plan: Plan) -> Stepped:
        if len(self) > 1:
            tried = self._trial.hold()
            self._reading.company = self._trial.company  # texts that are scored may have held it already
            self._passes.together = self._trial.company.equal
            if tried:
                return Stepped()  # the time that it took is nobody's pace
        return super().step(plan)

    def insert(self, row: Row) -> None:
        assert isinstance(row, VisionRow)
        tokens = row.prompt + row.tokens
        layers, held = row.kept or (None, [])
        self._reading.add(VisionReading(row, tokens, layers, list(held), ready=layers is not None))

    def _left(self, row: Row, entry: Reading | None) -> None:
        assert isinstance(row, VisionRow)
        if not row.keeps:
            return
        if entry is not None:
            self._passes.leave(row, entry.layers or [], entry.held)
        else:
            at = self._batch.index(row)
            assert at is not None
            self._passes.leave(row, *self._batch.cache(at))


class _Passes:
    """Passes over embeddings and positions; a `mlxengine.toolkit.reading.Reads`."""

    def __init__(
        self,
        language: Language,
        adapters: Adapters,
        prefixes: Callable[[str | None], PrefixCache | None],
        shapes: Shapes,
        look: Callable[[Sequence[Sight]], None],
    ) -> None:
        self._shapes = shapes
        self._adapters = adapters
        self._language = language
        self.caches, self.merge = language.caches, language.merge
        self._prefixes = prefixes
        self._look = look
        self._deltas: list[Any] = []  # of the rows that decode
        self._ahead: Any = None  # the same in one array
        self.together = False  # whether prompts may share a pass

    def decode(self, rows: Sequence[Row], tokens: mx.array, layers: list[Any]) -> mx.array:
        self._adapters.use(*map(adapter_of, rows))
        deltas = [row.deltas for row in rows if isinstance(row, VisionRow) and row.deltas is not None]
        if list(map(id, deltas)) != list(map(id, self._deltas)):
            self._deltas, self._ahead = deltas, mx.concatenate(deltas) if deltas else None
        crossed = rows[0].crossed if len(rows) == 1 and isinstance(rows[0], VisionRow) else NOTHING
        return _last(self._language.follow(tokens, layers, self._ahead, crossed))

    def read(
        self, group: Sequence[Reading], counts: Sequence[int], length: int, layers: list[Any], blank: int = 0
    ) -> mx.array | None:
        first = group[0]
        adapters = [adapter_of(entry.row) for entry in group]
        self._adapters.use(*adapters, *adapters[-1:] * blank)
        plans = [entry.plan for entry in group if isinstance(entry, VisionReading) and entry.plan is not None]
        if not plans or not plans[0].left:  # of an answer that is read again
            at = len(first.held)
            row = first.row
            assert isinstance(row, VisionRow)
            tokens = mx.array([first.tokens[at : at + counts[0]]])
            self._language.follow(tokens, layers, row.deltas, row.crossed)
            return None
        parts = [plan.take(count) for plan, count in zip(plans, counts, strict=True)]
        parts += parts[-1:] * blank
        logits = self._language.read(parts, length, layers)
        return None if first.last else _last(logits)

    def prepare(self, entries: Sequence[Reading]) -> None:
        sights = [entry.row.sight for entry in entries if isinstance(entry.row, VisionRow)]
        for size, count in Counter(sight.size for sight in sights if sight.unseen).items():
            self._shapes.note("media", count, size)
        self._look(sights)
        for entry in entries:
            assert isinstance(entry, VisionReading)
            try:
                self._start(entry)
            except Exception as error:
                entry.row.fail(error)

    def _start(self, entry: VisionReading) -> None:
        row = entry.row
        assert isinstance(row, VisionRow)
        self._adapters.use(adapter_of(row))
        plan = entry.plan = row.sight()
        deltas = plan.rope_deltas
        row.crossed, row.restarts = plan.crossed, plan.restarts
        row.deltas = None if deltas is None else deltas.reshape(1, 1).astype(mx.int32)
        prefixes = self._prefixes(adapter_of(row))
        if prefixes is not None and row.keeps:
            found = prefixes.find(plan.ids, row.media, plan.media)
            if found is not None:
                entry.layers, plan.start = found[0], len(found[1])
                if not row.tokens:
                    row.cached = plan.start
        entry.held = plan.ids[: plan.start]
        entry.divisible = not plan.whole
        entry.shares = self.together and plan.plain and not row.tokens
        entry.last = int(entry.shares or bool(row.tokens))
        entry.border = self._border(entry, plan)
        entry.ready = True

    def _border(self, entry: Reading, plan: Prefill) -> int | None:
        """Behind the last picture, where the caches cannot be cut back to it later; and before an answer."""
        layers = self.caches() if entry.layers is None else entry.layers
        keeps = self._prefixes(adapter_of(entry.row)) is not None
        stops = keeps and plan.restarts and not plan.whole and not trimmable(layers)
        if stops and len(entry.held) < plan.media_end < len(plan.ids):
            return plan.media_end
        return len(plan.ids) if entry.row.tokens and len(entry.held) < len(plan.ids) else None

    def keeps(self, entry: Reading) -> bool:
        row = entry.row
        return (
            self._prefixes(adapter_of(row)) is not None
            and isinstance(row, VisionRow)
            and row.keeps
            and not row.tokens
        )

    def keep(self, entry: Reading) -> None:
        row = entry.row
        assert isinstance(entry, VisionReading)
        assert isinstance(row, VisionRow)
        prefixes = self._prefixes(adapter_of(row))
        if self.keeps(entry) and prefixes is not None:
            prefixes.add(entry.layers or [], entry.held, row.media, goes_on=True)
        if entry.plan is not None:
            entry.border = self._border(entry, entry.plan)

    def leave(self, row: VisionRow, layers: list[Any], tokens: Sequence[int]) -> None:
        """Keep the cache of a row that leaves, for prompts that begin alike."""
        prefixes = self._prefixes(adapter_of(row))
        # A placeholder that the model wrote stands for nothing, and would be taken for a later one's picture.
        if prefixes is not None and layers and not row.sight.media_tokens.intersection(row.tokens):
            prefixes.add(layers, tokens, row.media)


def _last(logits: mx.array) -> mx.array:
    """Those of the last position in fp32, shape (rows, vocabulary)."""
    return logits[:, -1, :].astype(mx.float32)


__all__ = ["VisionAnswer", "VisionDecoder", "VisionRow"]
