"""Structured output: llguidance's token masks as logits processors of a continuous batch, on any back end.

The masks of all rows are computed together, once a step, after the network's forward pass was queued:
the device computes while the masks are made. They are applied with one ``where``, so no kernel of a
particular back end is needed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import GenerationError, InvalidParameterError
from ..grammar import Grammar, GrammarKind

_KEPT = 32
_LONGEST = 1 << 18  # characters: compiling takes about a second then, in which nothing else is served
# A model that likes blank space could otherwise go on with it for ever.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,4}"}


class GrammarRow:
    """A logits processor that allows only what the grammar does; one for each row.

    ``tokens`` are the row's tokens so far, of which the first ``prompt_length`` are the prompt. A row that
    is rebuilt from its tokens is followed from the start again.
    """

    def __init__(self, grammars: Grammars, matcher: Any, prompt_length: int) -> None:
        self._grammars = grammars
        self._prompt_length = prompt_length
        self._consumed = 0
        self._bits: np.ndarray[Any, Any] | None = None
        self.matcher = matcher

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self._grammars.fill(logits)
        count = tokens.size - self._prompt_length
        if self._consumed != count:
            if self._consumed > count:
                self.matcher.reset()
                self._consumed = 0
            missed: Any = tokens[self._prompt_length + self._consumed :].tolist()
            for token in missed:
                self.consume(token)
        if self.matcher.is_error():
            raise GenerationError(
                f"The grammar cannot go on: {_reason(self.matcher)}", hint="Simplify the grammar."
            )
        if self._bits is None:
            self._bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        allowed = self._grammars.allowed(self._bits, logits.shape[-1], ended=self.matcher.is_stopped())
        return mx.where(mx.array(allowed)[None], logits, mx.array(-mx.inf, dtype=logits.dtype))

    def consume(self, token: int) -> None:
        """Take note of the row's next token."""
        self._consumed += 1
        self._bits = None
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)

    def masked(self, bits: np.ndarray[Any, Any]) -> None:
        """Use a mask that was made for the present state."""
        self._bits = bits

    @property
    def ended(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self.matcher.is_stopped())


class Grammars:
    """The grammars of one model: compiled once each, their masks filled together.

    Args:
        tokenizer: gives the text of ``tokenizer.json`` (of a fast tokenizer: ``backend_tokenizer.to_str``).
        vocabulary: number of logits.
        stop_ids: the token ids that end an answer.
    """

    def __init__(self, tokenizer: Callable[[], str], vocabulary: int, stop_ids: Iterable[int]) -> None:
        self._text = tokenizer
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop_ids)
        self._tokenizer: Any = None
        self._executor: Any = None
        self._matchers: OrderedDict[Grammar, Any] = OrderedDict()
        self._expected: tuple[list[tuple[int, GrammarRow]], mx.array] | None = None

    def row(self, grammar: Grammar, prompt_length: int) -> GrammarRow:
        """The processor of a row whose answer must fit the grammar.

        Raises:
            InvalidParameterError: the grammar cannot be compiled, or nothing fits it.
        """
        return GrammarRow(self, self._matcher(grammar).deep_copy(), prompt_length)

    def expect(self, rows: list[tuple[int, GrammarRow]], tokens: mx.array) -> None:
        """Before a step: the rows, each with its position in ``tokens`` (drawn, perhaps not evaluated)."""
        self._expected = (rows, tokens) if rows else None

    def fill(self, logits: mx.array) -> None:
        """Within a step, once its forward pass is in the graph: make all rows' masks."""
        if self._expected is None:
            return
        rows, tokens = self._expected
        self._expected = None
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        drawn: Any = tokens.tolist()
        for at, row in rows:
            row.consume(drawn[at])
        words = (self._vocabulary + 31) // 32
        masks: Any = np.zeros((len(rows), words), dtype=np.int32)
        live = [(row.matcher, i) for i, (_, row) in enumerate(rows) if not row.matcher.is_error()]
        if live:
            self._executor.unsafe_compute_mask_ptr(live, masks.ctypes.data, words * 4, len(rows))
        for i, (_, row) in enumerate(rows):
            row.masked(masks[i].view(np.uint8))

    def allowed(self, bits: np.ndarray[Any, Any], size: int, *, ended: bool) -> Any:
        """A packed mask as booleans, shape (size,); only end tokens once the grammar has ended."""
        found: Any = np.zeros(size, dtype=bool)
        if ended:
            found[[token for token in self._stop_ids if token < size]] = True
            return found
        flat = np.unpackbits(bits, count=min(size, bits.size * 8), bitorder="little")
        found[: flat.size] = flat.view(bool)
        return found

    def _matcher(self, grammar: Grammar) -> Any:
        from llguidance import LLExecutor, LLMatcher, LLTokenizer

        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(self._text(), n_vocab=self._vocabulary, eos_token=self._stop_ids)
            self._executor = LLExecutor()
        if grammar not in self._matchers:
            try:
                if len(grammar.source) > _LONGEST:
                    raise ValueError(f"it has {len(grammar.source)} characters, at most {_LONGEST} may be.")
                text = _compiled(grammar, LLMatcher)
                failed, problems = LLMatcher.validate_grammar_with_warnings(text, self._tokenizer)
                if failed:
                    raise ValueError(problems[0])
                matcher = LLMatcher(self._tokenizer, text, log_level=0)
                first = matcher.deep_copy()  # some are found to be impossible or too complex only when used
                if not any(first.compute_bitmask()) or first.is_error():
                    raise ValueError(_reason(first) or "nothing fits it.")
                self._matchers[grammar] = matcher
            except ValueError as error:
                raise InvalidParameterError(
                    f"The grammar ({grammar.kind}) cannot be used: {error}",
                    hint="Simplify it; llguidance documents what it supports.",
                ) from error
            if len(self._matchers) > _KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(grammar)
        return self._matchers[grammar]


def _reason(matcher: Any) -> str:
    """Why a matcher cannot go on, without the dump of its state."""
    return str(matcher.get_error()).partition("\n")[0]


def _compiled(grammar: Grammar, compiler: Any) -> str:
    if grammar.kind is GrammarKind.REGEX:
        return str(compiler.grammar_from_regex(grammar.source))
    if grammar.kind is GrammarKind.LARK:
        return str(compiler.grammar_from_lark(grammar.source))
    return str(compiler.grammar_from_json_schema(json.loads(grammar.source), defaults=_JSON_OPTIONS))


__all__ = ["GrammarRow", "Grammars"]
