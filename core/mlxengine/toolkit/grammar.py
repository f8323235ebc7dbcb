"""Structured output: llguidance's token masks as logits processors of a continuous batch, on any back end.

The masks of all rows are computed together, once a step, after the network's forward pass was queued:
the device computes while the masks are made. They are applied with one ``where``, so no kernel of a
particular back end is needed.

Compiling a grammar takes from a millisecond to many seconds, so each is compiled on a thread of its own while
other rows go on; what a mask may take is bounded by llguidance's limits, at which the row fails.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import GenerationError, InvalidParameterError
from ..text.grammar import Grammar, GrammarKind

_KEPT = 32
_LONGEST = 1 << 18  # characters
# llguidance makes every pattern of an object exclude the others: 100 take 0.2 s, 500 over a minute.
_PATTERNS = 128
_PATIENCE = 30.0  # seconds that a row waits for its grammar
_BUILDERS = 4  # grammars that are compiled at the same time
# About a quarter of llguidance's own limits, with which one mask can take over a second; see LLParserLimits.
_LIMITS = {"initial_lexer_fuel": 200_000, "step_lexer_fuel": 50_000, "step_max_items": 20_000}
_HINT = "Simplify it; llguidance documents what it supports."
# A model that likes blank space could otherwise go on with it for ever.
BLANKS = r"[\x20\x0A\x0D\x09]{0,4}"


class GrammarRow:
    """A logits processor that allows only what the grammar does; one for each row.

    ``tokens`` are the row's tokens so far, of which the first ``prompt_length`` are the prompt. A row that
    is rebuilt from its tokens is followed from the start again.

    An answer that begins with something else (`after`), or may do so, says there what it likes, but
    cannot end.
    """

    def __init__(
        self, grammars: Grammars, grammar: Grammar, compiled: Future[Any], prompt_length: int
    ) -> None:
        self._grammars = grammars
        self._grammar = grammar
        self._compiled = compiled
        self._since = time.monotonic()
        self._matcher: Any = None
        self._prompt_length = prompt_length
        self._consumed = 0
        self._bits: np.ndarray[Any, Any] | None = None
        self._begins: Callable[[Sequence[int]], bool] | None = None
        self._opens: int | None = None
        self._said: list[int] = []
        self.bound = True  # whether the grammar holds for the next token

    def after(self, begins: Callable[[Sequence[int]], bool], *, opens: int | None = None) -> None:
        """Let the grammar begin behind the first tokens of the answer for which ``begins`` holds.

        With ``opens`` that is so only where the answer begins with that token.
        """
        self._begins, self._opens = begins, opens
        self._restart()

    def _restart(self) -> None:
        self._consumed, self._said = 0, []
        self.bound = self._begins is None or self._opens is not None

    def ready(self) -> bool:
        """Whether the grammar is compiled; the row must not be decoded before.

        Raises:
            InvalidParameterError: it cannot be compiled, nothing fits it, or compiling takes too long.
        """
        if self._matcher is not None:
            return True
        if not self._compiled.done():
            if time.monotonic() - self._since < _PATIENCE:
                return False
            raise self._refused(f"it is not compiled after {_PATIENCE:.0f} s.")
        error = self._compiled.exception()
        if error is not None:
            raise self._refused(str(error)) from error
        self._matcher = self._compiled.result().deep_copy()
        return True

    def _refused(self, reason: str) -> InvalidParameterError:
        return InvalidParameterError(
            f"The grammar ({self._grammar.kind}) cannot be used: {reason}", hint=_HINT
        )

    @property
    def matcher(self) -> Any:
        """llguidance's matcher of this row."""
        assert self._matcher is not None, "not ready"
        return self._matcher

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self._grammars.fill(logits)
        count = tokens.size - self._prompt_length
        if self._consumed != count:
            if self._consumed > count:
                self.matcher.reset()
                self._restart()
            missed: Any = tokens[self._prompt_length + self._consumed :].tolist()
            for token in missed:
                self.consume(token)
        if not self.bound:
            return self._grammars.without_ends(logits)
        if self.matcher.is_error():
            raise GenerationError(
                f"The grammar ({self._grammar.kind}) cannot go on: {_reason(self.matcher)}",
                hint="Simplify it: fewer alternatives and optional properties at one place.",
            )
        if self._bits is None:
            self._bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        allowed = self._grammars.allowed(self._bits, logits.shape[-1], ended=self.matcher.is_stopped())
        if self._opens is not None and not self._consumed:
            allowed[self._opens] = True
        return mx.where(mx.array(allowed)[None], logits, mx.array(-mx.inf, dtype=logits.dtype))

    def consume(self, token: int) -> None:
        """Take note of the row's next token."""
        if self._opens == token and not self._consumed:
            self.bound = False
        self._consumed += 1
        self._bits = None
        if self._begins is not None and not self.bound:
            self._said.append(token)
            self.bound = self._begins(self._said)
        elif not self.matcher.is_stopped():
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
        self._lock = threading.Lock()
        self._matchers: OrderedDict[Grammar, Future[Any]] = OrderedDict()
        self._builders = threading.BoundedSemaphore(_BUILDERS)
        self._expected: tuple[list[tuple[int, GrammarRow]], mx.array] | None = None

    def row(self, grammar: Grammar, prompt_length: int) -> GrammarRow:
        """The processor of a row whose answer must fit the grammar, which is being compiled meanwhile."""
        if grammar not in self._matchers:
            found: Future[Any] = Future()
            self._matchers[grammar] = found
            # A thread that cannot be interrupted must not keep the process from ending.
            name = "mlxengine-grammar"
            threading.Thread(target=self._compile, args=(grammar, found), name=name, daemon=True).start()
            if len(self._matchers) > _KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(grammar)
        return GrammarRow(self, grammar, self._matchers[grammar], prompt_length)

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
        rows = [(at, row) for at, row in rows if row.bound]
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

    def without_ends(self, logits: mx.array) -> mx.array:
        """Logits, shape (1, size), of which none ends the answer."""
        allowed: Any = np.ones(logits.shape[-1], dtype=bool)
        allowed[[token for token in self._stop_ids if token < allowed.size]] = False
        return mx.where(mx.array(allowed)[None], logits, mx.array(-mx.inf, dtype=logits.dtype))

    def _compile(self, grammar: Grammar, future: Future[Any]) -> None:
        """Compile a grammar; on a thread of its own."""
        try:
            with self._builders:
                future.set_result(self._matcher(grammar))
        except BaseException as error:
            future.set_exception(error)

    def _matcher(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        if len(grammar.source) > _LONGEST:
            raise ValueError(f"it has {len(grammar.source)} characters, at most {_LONGEST} may be.")
        text = _compiled(grammar, LLMatcher)
        matcher = LLMatcher(self._words(), text, log_level=0, limits=LLParserLimits(**_LIMITS))
        # Some are found to be impossible or too complex only when used; and the first mask is the slowest.
        if matcher.is_error() or not any(matcher.compute_bitmask()) or matcher.is_error():
            raise ValueError(_reason(matcher) or "nothing fits it.")
        return matcher

    def _words(self) -> Any:
        """The tokenizer as llguidance wants it, made for the first grammar.

        That holds Python's lock, about 10 us a token, so it is done in two parts.
        """
        from llguidance import LLExecutor, LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                text = self._text()
                plain = LLTokenizer(text, n_vocab=self._vocabulary, eos_token=self._stop_ids, slices=[])
                self._tokenizer = plain.with_slices(LLTokenizer.general_slices())
                self._executor = LLExecutor()
            return self._tokenizer


def _reason(matcher: Any) -> str:
    """Why a matcher cannot go on, without the dump of its state."""
    return str(matcher.get_error()).partition("\n")[0]


def _compiled(grammar: Grammar, compiler: Any) -> str:
    if grammar.kind is GrammarKind.REGEX:
        return str(compiler.grammar_from_regex(grammar.source))
    if grammar.kind is GrammarKind.LARK:
        return str(compiler.grammar_from_lark(grammar.source))
    schema = json.loads(grammar.source)
    check_patterns(schema)
    return str(compiler.grammar_from_json_schema(schema, defaults={"whitespace_pattern": BLANKS}))


def check_patterns(schema: Any) -> None:
    """Refuse a schema that would take minutes to compile.

    Raises:
        InvalidParameterError: one of its objects has too many ``patternProperties``.
    """
    most = max(_pattern_counts(schema), default=0)
    if most > _PATTERNS:
        raise InvalidParameterError(
            f"A schema has an object with {most} patternProperties, at most {_PATTERNS} may be.", hint=_HINT
        )


def _pattern_counts(schema: Any) -> Iterator[int]:
    """How many patterns each ``patternProperties`` anywhere in a schema has."""
    if isinstance(schema, dict):
        patterns = schema.get("patternProperties")
        if isinstance(patterns, dict):
            yield len(patterns)
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _pattern_counts(item)


__all__ = ["GrammarRow", "Grammars", "check_patterns"]
