"""Decodes the rows of one vision-language model together, and reads their prompts.

mlx-vlm's own batch generator takes the first request's sampler for all rows and prefills several prompts
in one padded forward, where deepstack features and masks of different pictures get mixed. Here only prompts
share a pass whose language model takes nothing but embeddings and positions, into caches that padding does
not disturb; every other prompt is read by itself. Each row keeps its own sampler and processors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import define, evolve
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.decoding import TogetherDecoder
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.joining import Company
from mlxengine.toolkit.reading import Reading
from mlxengine.toolkit.rows import Row
from mlxengine.toolkit.shapes import Shapes

from ._cache import PrefixCache, trimmable
from ._prefill import Prefill, stacked
from ._sight import Sight


class VisionRow(Row):
    """A row whose prompt may have media.

    ``sight`` makes the language model's inputs for the prompt; ``media`` names the content that the
    placeholders stand for, in order; ``deltas`` is how far positions run ahead of tokens (M-RoPE), shape
    (1, 1), once that is known; ``reuse`` and ``cached`` are as in `Answer`.
    """

    sight: Sight
    media: tuple[str, ...] = ()
    deltas: Any = None
    reuse = False
    cached = 0


class VisionAnswer(Answer, VisionRow):
    """An answer to a prompt that may have media."""


@define(eq=False, kw_only=True)
class VisionReading(Reading):
    """A prompt that is being read; ``plan`` holds what is left of it, ``None`` where it was read before."""

    plan: Prefill | None = None


class VisionDecoder(TogetherDecoder):
    """The decoding batch and the queue of prompts of one model; a `mlxengine.toolkit.rows.Decoder`.

    Args:
        network: a model of mlx-vlm.
        prefixes: where caches of prompts are kept for later ones, or ``None``.
        grammars: of the model's rows, told before each step which tokens were drawn.
        shapes: which sizes of passes the device has met.
        look: makes the media's features of several prompts.
        context: most positions that the model knows, or ``None``.
    """

    def __init__(
        self,
        network: Any,
        prefixes: PrefixCache | None,
        grammars: Grammars | None,
        shapes: Shapes,
        look: Callable[[Sequence[Sight]], None],
        context: int | None = None,
    ) -> None:
        passes = _Passes(network, prefixes, shapes, look)
        found = Company.of(passes.caches())
        company = evolve(found, equal=found.padded, behind=False)
        passes.together = company.padded
        super().__init__(passes, company, shapes, grammars, context=context, plain=found.equal)

    def insert(self, row: Row) -> None:
        assert isinstance(row, VisionRow)
        tokens = row.prompt + row.tokens
        layers, held = row.kept or (None, [])
        self._reading.add(VisionReading(row, tokens, layers, list(held), ready=layers is not None))


class _Passes:
    """Passes over embeddings and positions; a `mlxengine.toolkit.reading.Reads`."""

    def __init__(
        self,
        network: Any,
        prefixes: PrefixCache | None,
        shapes: Shapes,
        look: Callable[[Sequence[Sight]], None],
    ) -> None:
        self._shapes = shapes
        self._language = getattr(network, "language_model", network)
        self._prefixes = prefixes
        self._look = look
        settings = getattr(self._language, "config", None)
        self._prefix_lm = getattr(settings, "use_bidirectional_attention", None) is True
        self._deltas: list[Any] = []  # of the rows that decode
        self._ahead: Any = None  # the same in one array
        self.together = False  # whether the caches let prompts share a pass

    def caches(self) -> list[Any]:
        from mlx_vlm.models.cache import make_prompt_cache

        return list(make_prompt_cache(self._language))

    def merge(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [_merged(parts) for parts in zip(*rows, strict=True)]

    def decode(self, rows: Sequence[Row], tokens: mx.array, layers: list[Any]) -> mx.array:
        deltas = [row.deltas for row in rows if isinstance(row, VisionRow) and row.deltas is not None]
        if list(map(id, deltas)) != list(map(id, self._deltas)):
            self._deltas, self._ahead = deltas, mx.concatenate(deltas) if deltas else None
        logits: mx.array = _last(self._call(tokens, layers, self._ahead))
        return logits

    def _call(self, tokens: Any, layers: list[Any], deltas: Any) -> Any:
        """Run tokens of answers, shape (rows, n), behind what the cache holds."""
        options: dict[str, Any] = {} if deltas is None else {"rope_deltas": deltas}
        if self._prefix_lm:  # such a model masks nothing by itself, not even the padding of shorter rows
            options["mask"] = layers[0].make_mask(tokens.shape[1], return_array=True, window_size=None)
        return self._language(tokens, cache=layers, **options)

    def read(
        self, group: Sequence[Reading], counts: Sequence[int], length: int, layers: list[Any], blank: int = 0
    ) -> mx.array | None:
        first = group[0]
        plans = [entry.plan for entry in group if isinstance(entry, VisionReading) and entry.plan is not None]
        if not plans or not plans[0].left:  # of an answer that is read again
            at = len(first.held)
            row = first.row
            assert isinstance(row, VisionRow)
            self._call(mx.array([first.tokens[at : at + counts[0]]]), layers, row.deltas)
            return None
        parts = [plan.take(count) for plan, count in zip(plans, counts, strict=True)]
        parts += parts[-1:] * blank
        ids, inputs = parts[0] if (len(parts), length) == (1, counts[0]) else stacked(parts, length)
        output = self._language(ids, cache=layers, **inputs)
        return None if first.last else _last(output)

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
        plan = entry.plan = row.sight()
        row.deltas = self._delta(plan)
        if self._prefixes is not None and row.reuse and plan.restarts:
            found = self._prefixes.find(plan.ids, row.media, plan.media)
            if found is not None:
                entry.layers, plan.start = found
                if not row.tokens:
                    row.cached = plan.start
        entry.held = plan.ids[: plan.start]
        entry.divisible = not plan.whole
        entry.shares = self.together and plan.plain and not row.tokens
        entry.last = int(entry.shares or bool(row.tokens))
        entry.border = self._border(entry, plan)
        entry.ready = True

    def _delta(self, plan: Prefill) -> Any:
        if plan.rope_deltas is not None:
            return plan.rope_deltas.reshape(1, 1).astype(mx.int32)
        return mx.zeros((1, 1), dtype=mx.int32) if hasattr(self._language, "get_rope_index") else None

    def _border(self, entry: Reading, plan: Prefill) -> int | None:
        """Behind the last picture, where the caches cannot be cut back to it later; and before an answer."""
        layers = self.caches() if entry.layers is None else entry.layers
        stops = self._prefixes is not None and plan.restarts and not plan.whole and not trimmable(layers)
        if stops and len(entry.held) < plan.media_end < len(plan.ids):
            return plan.media_end
        return len(plan.ids) if entry.row.tokens and len(entry.held) < len(plan.ids) else None

    def keeps(self, entry: Reading) -> bool:
        row = entry.row
        return (
            self._prefixes is not None
            and isinstance(entry, VisionReading)
            and entry.plan is not None
            and entry.plan.restarts
            and isinstance(row, VisionRow)
            and row.reuse
            and not row.tokens
        )

    def keep(self, entry: Reading) -> None:
        row = entry.row
        assert isinstance(entry, VisionReading)
        assert isinstance(row, VisionRow)
        if self.keeps(entry) and self._prefixes is not None:
            self._prefixes.keep(entry.held, row.media, entry.layers or [])
        if entry.plan is not None:
            entry.border = self._border(entry, entry.plan)


def _merged(parts: Sequence[Any]) -> Any:
    """The caches of single rows as a batch's."""
    first = parts[0]
    if type(first).__name__ == "CacheList":
        return type(first)(*(_merged(children) for children in zip(*(p.caches for p in parts), strict=True)))
    if callable(getattr(first, "filter", None)) and callable(getattr(first, "extend", None)):
        for part in parts[1:]:
            first.extend(part)
        return first
    return type(first).merge(parts)


def _last(output: Any) -> Any:
    """Logits of the last position in fp32, shape (rows, vocabulary)."""
    logits = output.logits if hasattr(output, "logits") else output
    return logits[:, -1, :].astype(mx.float32)


__all__ = ["VisionAnswer", "VisionDecoder", "VisionRow"]
