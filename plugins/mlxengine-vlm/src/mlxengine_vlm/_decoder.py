"""Decodes the rows of one vision-language model together, one token of each row a step.

mlx-vlm's own batch generator takes the first request's sampler for all rows and prefills several prompts
in one padded forward, where deepstack features and masks of different pictures get mixed. Here every
prompt is prefilled by itself, in chunks, and joins the batch as a cache; each row keeps its own sampler
and processors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import define
from mlxengine.toolkit.answers import Answer
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.rows import Drawn, Plan, Row, Stepped

from ._cache import PrefixCache, trimmable
from ._prefill import Prefill


class VisionAnswer(Answer):
    """An answer to a prompt with media.

    ``plan`` makes the language model's inputs for the prompt; ``media`` names the content that the
    placeholders stand for, in order.
    """

    plan: Callable[[], Prefill]
    media: tuple[str, ...] = ()


@define(eq=False)
class _Reading:
    """A prompt that is being read, or a parked row that comes back.

    ``pending`` are tokens of the answer that are to be read behind the prompt.
    """

    row: Row
    pending: list[int]
    plan: Prefill | None = None
    cache: list[Any] | None = None
    deltas: Any = None


class VisionDecoder:
    """The decoding batch and the queue of prompts of one model; a `mlxengine.toolkit.rows.Decoder`.

    Args:
        network: a model of mlx-vlm.
        prefixes: where caches of prompts are kept for later ones, or ``None``.
        grammars: of the model's rows, told before each step which tokens were drawn.
    """

    def __init__(self, network: Any, prefixes: PrefixCache | None, grammars: Grammars | None = None) -> None:
        self._language = getattr(network, "language_model", network)
        self._prefixes = prefixes
        self._grammars = grammars
        settings = getattr(self._language, "config", None)
        self._prefix_lm = getattr(settings, "use_bidirectional_attention", None) is True
        self._reading: list[_Reading] = []
        self._rows: list[Row] = []
        self._cache: list[Any] = []
        self._next: Any = None  # tokens drawn but not handed out yet, shape (rows,)
        self._logprobs: Any = None  # what they were drawn from, shape (rows, vocabulary)
        self._deltas: Any = None  # positions ahead of tokens (M-RoPE), shape (rows, 1), or None
        self._seen: list[Any] = []  # all tokens of each row that has processors; lazy

    def insert(self, row: Row) -> None:
        entry = _Reading(row, list(row.tokens))
        if row.kept is not None:  # its cache holds everything but the last token
            (entry.cache, entry.deltas), entry.pending = row.kept, row.tokens[-1:]
        self._reading.append(entry)

    def step(self, plan: Plan) -> Stepped:
        drawn = self._decode() if self._rows else []
        tokens = 0
        while self._reading and tokens < plan.tokens:  # one prompt after the other
            tokens += self._read(plan.tokens - tokens)
        return Stepped(drawn=drawn, prompt_tokens=tokens)

    def remove(self, rows: Sequence[Row]) -> None:
        leaving = {id(row) for row in rows}
        self._reading = [entry for entry in self._reading if id(entry.row) not in leaving]
        keep = [at for at, row in enumerate(self._rows) if id(row) not in leaving]
        if len(keep) == len(self._rows):
            return
        if not keep:
            self._empty()
            return
        self._rows = [self._rows[at] for at in keep]
        self._seen = [self._seen[at] for at in keep]
        at = mx.array(keep, dtype=mx.int32)
        for part in self._cache:
            part.filter(at)
        self._next, self._logprobs = self._next[at], self._logprobs[at]
        if self._deltas is not None:
            self._deltas = self._deltas[at]

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        at = next((at for at, other in enumerate(self._rows) if other is row), None)
        if at is None:
            return None
        cache = [part.extract(at) for part in self._cache]
        deltas = None if self._deltas is None else self._deltas[at : at + 1]
        mx.eval(_states(cache))
        drawn = Drawn(row, int(self._next[at].item()), self._logprobs[at])
        self.remove([row])
        return drawn, (cache, deltas)

    def close(self) -> None:
        self._reading = []
        self._empty()

    def _empty(self) -> None:
        self._rows, self._cache, self._seen = [], [], []
        self._next = self._logprobs = self._deltas = None

    def _decode(self) -> list[Drawn]:
        """Hand out the tokens that are drawn, after starting to draw the next ones."""
        tokens, logprobs = self._next, self._logprobs
        if self._grammars is not None:
            found = [(at, getattr(row, "grammar", None)) for at, row in enumerate(self._rows)]
            self._grammars.expect([(at, one) for at, one in found if one is not None], tokens)
        output = self._call(tokens[:, None], self._cache, self._deltas)
        for at, row in enumerate(self._rows):
            if row.processors:
                self._seen[at] = mx.concatenate([self._seen[at], tokens[at : at + 1]])
        self._next, self._logprobs = _draw(_last(output), self._rows, self._seen)
        mx.async_eval(self._next)  # type: ignore[no-untyped-call]
        return [
            Drawn(row, token, logprobs[at])
            for at, (row, token) in enumerate(zip(self._rows, tokens.tolist(), strict=True))
        ]

    def _call(self, tokens: Any, cache: Any, deltas: Any) -> Any:
        """Run tokens of answers, shape (rows, n), behind what the cache holds."""
        options: dict[str, Any] = {} if deltas is None else {"rope_deltas": deltas}
        if self._prefix_lm:  # such a model masks nothing by itself, not even the padding of shorter rows
            options["mask"] = cache[0].make_mask(tokens.shape[1], return_array=True, window_size=None)
        return self._language(tokens, cache=cache, **options)

    def _read(self, chunk: int) -> int:
        """Read a piece of the first waiting prompt; a row whose plan cannot be made fails alone."""
        entry = self._reading[0]
        row = entry.row
        if entry.cache is None:
            try:
                self._start(entry)
            except Exception as error:
                row.fail(error)
                self._reading.pop(0)
                return 0
        output, count = None, 0
        if entry.plan is not None:
            before = entry.plan.left
            ids, inputs = entry.plan.take(self._stop_at(entry, chunk))
            output = self._language(ids, cache=entry.cache, **inputs)
            count = before - entry.plan.left
            mx.eval(_states(entry.cache))
            self._remember(entry)
            if entry.plan.left:
                return count
        if entry.pending:
            output = self._call(mx.array([entry.pending]), entry.cache, entry.deltas)
            count += len(entry.pending)
        self._reading.pop(0)
        seen = mx.array(row.prompt + row.tokens) if row.processors else None
        first, logprobs = _draw(_last(output), [row], [seen])
        mx.eval(first, _states(entry.cache))
        self._join(entry, seen, first, logprobs)
        return count

    def _start(self, entry: _Reading) -> None:
        row = entry.row
        assert isinstance(row, VisionAnswer)
        plan = row.plan()
        entry.deltas = plan.rope_deltas
        if self._prefixes is not None and row.reuse and plan.restarts:
            found = self._prefixes.find(plan.ids, row.media, plan.media)
            if found is not None:
                entry.cache, plan.start = found
                if not row.tokens:
                    row.cached = plan.start
        if entry.cache is None:
            entry.cache = _new_cache(self._language)
        entry.plan = plan

    def _stop_at(self, entry: _Reading, chunk: int) -> int:
        """Stop behind the last picture where the caches cannot be cut back to it later."""
        plan = entry.plan
        if plan is None or self._prefixes is None or not plan.restarts or trimmable(entry.cache):
            return chunk
        behind = plan.media_end - plan.start
        return min(chunk, behind) if behind > 0 and not plan.whole else chunk

    def _remember(self, entry: _Reading) -> None:
        row, plan = entry.row, entry.plan
        if self._prefixes is None or plan is None or not isinstance(row, VisionAnswer) or not plan.restarts:
            return
        ready = plan.left == 0 or (plan.start == plan.media_end and not trimmable(entry.cache))
        if ready and row.reuse and not row.tokens:
            self._prefixes.keep(plan.ids[: plan.start], row.media, entry.cache or [])

    def _join(self, entry: _Reading, seen: Any, first: Any, logprobs: Any) -> None:
        joining = [_batched(part) for part in entry.cache or ()]
        deltas = entry.deltas
        if deltas is None and hasattr(self._language, "get_rope_index"):
            deltas = mx.zeros((1, 1), dtype=mx.int32)
        elif deltas is not None:
            deltas = deltas.reshape(1, 1).astype(mx.int32)
        if not self._rows:
            self._cache, self._next, self._logprobs, self._deltas = joining, first, logprobs, deltas
        else:
            for part, other in zip(self._cache, joining, strict=True):
                part.extend(other)
            self._next = mx.concatenate([self._next, first])
            self._logprobs = mx.concatenate([self._logprobs, logprobs])
            if self._deltas is not None:
                self._deltas = mx.concatenate([self._deltas, deltas])
        self._rows.append(entry.row)
        self._seen.append(seen)


def _new_cache(language: Any) -> list[Any]:
    from mlx_vlm.models.cache import make_prompt_cache

    return list(make_prompt_cache(language))


def _batched(part: Any) -> Any:
    """The cache of one row as a batch of one."""
    from mlx_vlm.models.cache import CacheList

    if isinstance(part, CacheList):
        return CacheList(*(_batched(child) for child in part.caches))
    if callable(getattr(part, "filter", None)) and callable(getattr(part, "extend", None)):
        return part
    return type(part).merge([part])


def _states(caches: Sequence[Any] | None) -> list[Any]:
    return [part.state for part in caches or () if not part.empty()]


def _last(output: Any) -> Any:
    """Logits of the last position in fp32, shape (rows, vocabulary)."""
    logits = output.logits if hasattr(output, "logits") else output
    return logits[:, -1, :].astype(mx.float32)


def _draw(logits: Any, rows: Sequence[Row], seen: Sequence[Any]) -> tuple[Any, Any]:
    """Tokens, shape (rows,), and log-probabilities, shape (rows, vocabulary): each row by its own rules."""
    if any(row.processors for row in rows):
        pieces = []
        for at, row in enumerate(rows):
            own = logits[at : at + 1]
            for process in row.processors:
                own = process(seen[at], own)
            pieces.append(own)
        logits = mx.concatenate(pieces)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    samplers = [row.sampler for row in rows]
    if all(sampler is samplers[0] for sampler in samplers):
        return samplers[0](logprobs), logprobs
    drawn = [sampler(logprobs[at : at + 1]) for at, sampler in enumerate(samplers)]
    return mx.concatenate(drawn), logprobs


__all__ = ["VisionAnswer", "VisionDecoder"]
