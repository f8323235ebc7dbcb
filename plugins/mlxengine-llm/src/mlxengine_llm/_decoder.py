"""mlx-lm's continuous batch as the decoder of `mlxengine.toolkit.rows`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.rows import Drawn, Row, Stepped

from ._adapters import Adapters
from ._caches import own
from ._prefix import SMALLEST, PrefixCache, clone
from ._reading import Reading, Readings
from ._solo import Solo
from ._tags import TaggedNetwork, Tags, adapter_of

_FOREVER = 1 << 60


class BatchDecoder:
    """The rows of one model in one ``mlx_lm.generate.BatchGenerator``.

    Args:
        network: mlx-lm's module.
        max_rows: most rows that decode together.
        adapters: of the network; each row uses its own.
        prefixes: keeps the caches of an adapter's rows that leave, for prompts that begin alike.
        caches: makes the empty caches of a row.
        grammars: of the model's rows, told before each step which tokens were drawn.
        together: longer prompts are read one by one.
    """

    def __init__(
        self,
        network: Any,
        max_rows: int,
        adapters: Adapters,
        prefixes: Callable[[str | None], PrefixCache | None],
        caches: Callable[[], list[Any]],
        grammars: Grammars | None = None,
        together: int | None = None,
    ) -> None:
        from mlx_lm.generate import BatchGenerator

        self._generator = BatchGenerator(
            TaggedNetwork(network, adapters),
            max_tokens=_FOREVER,
            completion_batch_size=max_rows,
            prefill_batch_size=max_rows,
            stream=mx.default_stream(mx.default_device()),
        )
        _leave_wired_limit(self._generator)
        self._grammars = grammars
        self._prefixes = prefixes
        self._adapters = adapters
        self._caches = caches
        self._network = network
        self._reading = Readings(network, adapters, caches, self._checkpoint, together)
        self._rows: dict[int, Row] = {}  # those in the generator
        self._solo: Solo | None = None  # the row that has no company
        self._owed: list[Drawn] = []  # drawn when it got company

    def insert(self, row: Row) -> None:
        tokens = row.prompt + row.tokens
        layers, held = row.kept or self._fork(row) or self._prefix(row, tokens) or (None, [])
        if layers is not None:
            layers = [own(layer) for layer in layers]
        prefixes = self._kept_by(row)
        border = prefixes.parting(tokens, len(held)) if prefixes is not None else None
        self._reading.add(Reading(row, tokens, layers, list(held), border))

    def step(self, chunk: int) -> Stepped:
        whole = self._reading.ready(chunk)
        for entry in whole:
            self._put(entry)
        tokens = sum(entry.left for entry in whole)
        drawn = self._decode(tokens)
        return Stepped(drawn=drawn, prompt_tokens=tokens or self._reading.read(chunk))

    def _put(self, entry: Reading) -> None:
        self._join()
        layers = map(own, self._caches() if entry.layers is None else entry.layers)
        (uid,) = self._generator.insert(
            [entry.tokens[len(entry.held) :]],
            caches=[[*layers, Tags([adapter_of(entry.row)])]],
            all_tokens=[entry.held],
            samplers=[entry.row.sampler],
            logits_processors=[entry.row.processors],
        )
        self._rows[uid] = entry.row

    def _decode(self, chunk: int) -> list[Drawn]:
        """A token of every row whose prompt is read; queues the pass that draws the next ones."""
        if self._solo is not None:
            self._adapters.use(adapter_of(self._solo.row))
            return [self._solo.step()]
        if len(self._rows) == 1 and (parted := self.park(next(iter(self._rows.values())))) is not None:
            first, (layers, held) = parted
            self._adapters.use(adapter_of(first.row))
            self._solo = Solo(self._network, first.row, layers, held, first.token, self._grammars)
            return [first]
        if not self._rows:
            return []
        self._generator.prefill_step_size = max(chunk, 1)
        self._expect_masks()
        _, answers = self._generator.next()
        owed, self._owed = self._owed, []
        return owed + [
            Drawn(self._rows[answer.uid], answer.token, answer.logprobs)
            for answer in answers
            if answer.uid in self._rows
        ]

    def _join(self) -> None:
        """Give the row that was alone its place in the batch; its drawn token is read there."""
        solo, self._solo = self._solo, None
        if solo is not None:
            drawn = solo.leave()
            self._owed.append(drawn)
            self._put(Reading(solo.row, [*solo.held, drawn.token], solo.layers, solo.held))

    def _expect_masks(self) -> None:
        if self._grammars is None:
            return
        batch = self._generator._generation_batch
        found = [
            (at, grammar)
            for at, uid in enumerate(batch.uids)
            if uid in self._rows and (grammar := getattr(self._rows[uid], "grammar", None)) is not None
        ]
        self._grammars.expect(found, batch._next_tokens)

    def remove(self, rows: Sequence[Row]) -> None:
        self._owed = [item for item in self._owed if not any(item.row is row for row in rows)]
        solo = self._solo
        if solo is not None and any(solo.row is row for row in rows):
            self._solo = None
            self._keep(solo.row, solo.layers, solo.held)
        for entry in filter(None, map(self._reading.take, rows)):
            if entry.layers is not None:
                self._keep(entry.row, entry.layers, entry.held)
        leaving = [uid for uid, row in self._rows.items() if any(row is other for other in rows)]
        if not leaving:
            return
        keeping = [uid for uid in leaving if self._kept_by(self._rows[uid]) is not None]
        for uid, (layers, tokens) in self._generator.extract_cache(keeping).items():
            self._keep(self._rows[uid], layers[:-1], tokens)
        for uid in leaving:
            del self._rows[uid]
        self._generator.remove(leaving)

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
        if self._solo is not None and self._solo.row is row.after:
            self._join()
        leader = next((uid for uid, other in self._rows.items() if other is row.after), None)
        if leader is None or row.tokens or len(row.prompt) <= SMALLEST:
            return None
        (*layers, _), held = self._generator.extract_cache([leader])[leader]
        surplus = len(held) - (len(row.prompt) - 1)
        if surplus < 0 or not all(layer.is_trimmable() for layer in layers):
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
        if self._solo is not None and self._solo.row is row:
            solo, self._solo = self._solo, None
            return solo.leave(), (solo.layers, solo.held)
        batch = self._generator._generation_batch
        uid = next((uid for uid, other in self._rows.items() if other is row), None)
        if uid is None or uid not in batch.uids:
            return None
        at = batch.uids.index(uid)
        drawn = Drawn(row, int(batch._next_tokens[at].item()), batch._next_logprobs[at])
        (*layers, _), held = self._generator.remove([uid], return_prompt_caches=True)[uid]
        mx.eval([layer.state for layer in layers])
        del self._rows[uid]
        return drawn, (layers, list(held))

    def close(self) -> None:
        self._reading.clear()
        self._rows.clear()
        self._owed.clear()
        self._solo = None
        self._generator.close()


def _leave_wired_limit(generator: Any) -> None:
    """On a Mac mlx-lm's batch wires what Metal recommends, for the whole process; undo that."""
    before = getattr(generator, "_old_wired_limit", None)
    if before is not None:
        generator._old_wired_limit = None
        mx.set_wired_limit(before)


__all__ = ["BatchDecoder"]
