"""The leader's decoder: says each of its calls to the ranks, and draws what they leave to it.

A row's rules (its sampler, its seed, penalties, a grammar) stay here: of a row that wants more than the most
probable token, the first rank hands over the logits and all are told the token.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
from attrs import define, field
from mlxengine.errors import RankLostError
from mlxengine.toolkit.batch import Context, draw
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.rows import Drawn, Plan, Row, Stepped
from mlxengine.toolkit.sampling import greedy

from ._ranks import Ranks

LEAST = 3.0  # seconds that any step may take
FACTOR = 8.0  # of what it should take
_LOOK = 0.005  # seconds of a step in which the ranks are not ready


@define(eq=False)
class _Held:
    """A row that the ranks have.

    Args:
        row: the leader's.
        number: its name for the ranks.
        context: what its processors are shown.
        fed: the last token that the ranks have, or are about to read.
        drew: whether a token of it was drawn here.
        scores: what the tokens were drawn from that the ranks have not handed out yet.
    """

    row: Row
    number: int
    context: Context | None
    fed: int
    drew: bool = False
    scores: deque[mx.array | None] = field(factory=deque)


class _Parked:
    """The caches of a parked row, which lie with the ranks for as long as this exists."""

    def __init__(self, ranks: Ranks, number: int) -> None:
        self.number, self.generation = number, ranks.generation
        self.forgotten = weakref.finalize(self, ranks.gone.append, number)
        self.forgotten.atexit = False


class LeadingDecoder:
    """A `mlxengine.toolkit.row.Decoder` whose rows are with the ranks; they are started if they do not run.

    Args:
        ranks: the processes.
        grammars: of the model's rows, told before each draw which tokens were drawn.
        seconds: that a step may take of which nothing is known.
        known: whether what steps took tells how long the next one should take.
        alone: told why, where rows cannot decode together.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        ranks: Ranks,
        grammars: Grammars | None,
        seconds: float,
        known: bool,
        alone: Callable[[str], None],
    ) -> None:
        self._ranks = ranks
        self._grammars = grammars
        self._seconds = seconds
        self._known = known
        self._alone = alone
        self._held: dict[int, _Held] = {}
        self._early: list[Row] = []  # came before the ranks were ready
        self._changed = True  # whether rows came since the last step
        ranks.start()
        self._opened = ranks.ready
        if self._opened:
            self._call("open")

    @property
    def spare(self) -> int:
        """Places of the batch that nobody is in."""
        return self._ranks.spare

    def tidy(self) -> None:
        """Give those places up."""
        self._tell("tidy")
        self._ranks.spare = 0

    def insert(self, row: Row) -> None:
        """Take a row in; of ranks that are lost, the next step says so."""
        self._changed = True
        if not self._opened:
            self._early.append(row)
            return
        try:
            self._insert(row)
        except RankLostError:
            self._early.append(row)

    def _insert(self, row: Row) -> None:
        tokens = row.prompt + row.tokens
        context = Context(tokens[:-1]) if row.processors else None
        held = _Held(row, next(self._numbers), context, tokens[-1])
        kept = row.kept if isinstance(row.kept, _Parked) else None
        if kept is not None:
            kept.forgotten.detach()
        found = self._call(
            "insert",
            number=held.number,
            prompt=row.prompt,
            tokens=row.tokens,
            priority=row.priority,
            since=row.since,
            reuse=row.reuse,
            plain=row.sampler is greedy and not row.processors and not row.scored,
            after=self._number(row.after),
            kept=kept.number if kept is not None and kept.generation == self._ranks.generation else None,
        )
        row.read, row.cached = found["row"]
        self._held[held.number] = held

    def step(self, plan: Plan) -> Stepped:
        """As `Decoder.step`; while the ranks are not ready it does nothing."""
        if not self._opened:
            if not self._ranks.poll(_LOOK):
                return Stepped()
            self._opened = True
            early, self._early = self._early, []
            for row in early:
                self._insert(row)
        within = self._seconds
        if self._known and plan.seconds is not None and not self._changed:
            within = min(within, max(LEAST, FACTOR * plan.seconds))
        self._changed = False
        found = self._call("step", within, plan=attrs.asdict(plan))
        if found["alone"]:
            self._alone(found["alone"])
        for number, read in found["read"].items():
            self._held[int(number)].row.read = read
        return Stepped(
            drawn=[self._given(number, token) for number, token in found["drawn"]],
            prompt_tokens=found["prompt_tokens"],
            queued=found["queued"],
            new_shape=found["new_shape"],
        )

    def remove(self, rows: Sequence[Row]) -> None:
        """Take rows out."""
        self._early = [row for row in self._early if not any(row is other for other in rows)]
        leaving = [held for row in rows if (held := self._find(row)) is not None]
        for held in leaving:
            del self._held[held.number]
        if leaving:
            self._tell(
                "remove",
                rows=[held.number for held in leaving],
                failed=[held.number for held in leaving if held.row.failure is not None],
            )

    def park(self, row: Row) -> tuple[Drawn, Any] | None:
        """Take a row out with its cache, which stays with the ranks."""
        held = self._find(row)
        found = None if held is None else self._call("park", row=held.number)["parked"]
        if held is None or found is None:
            return None
        drawn = self._given(*found)
        del self._held[held.number]
        return drawn, _Parked(self._ranks, held.number)

    def close(self) -> None:
        """Drop everything."""
        self._held.clear()
        self._early.clear()
        if self._ranks.ready:
            self._tell("close")

    def _call(self, name: str, within: float | None = None, **arguments: object) -> dict[str, Any]:
        return self._ranks.call(name, within or self._seconds, self._draw, **arguments)

    def _tell(self, name: str, **arguments: Any) -> None:
        """A call whose callers know nothing of ranks: that they are lost, the next step says."""
        try:
            self._call(name, **arguments)
        except (RankLostError, MemoryError):
            assert not self._ranks.ready

    def _find(self, row: Row | None) -> _Held | None:
        return next((held for held in self._held.values() if held.row is row), None)

    def _number(self, row: Row | None) -> int | None:
        held = None if row is None else self._find(row)
        return None if held is None else held.number

    def _given(self, number: int, token: int) -> Drawn:
        held = self._held[number]
        return Drawn(held.row, token, held.scores.popleft() if held.scores else None)

    def _draw(self, numbers: Sequence[int], logits: bytes) -> list[int]:
        """Tokens of rows, by their own rules, of fp32 logits of shape (rows, vocabulary)."""
        every = [self._held[number] for number in numbers]
        inputs = mx.array([held.fed for held in every])
        if self._grammars is not None:
            grammars = [
                (at, getattr(held.row, "grammar", None)) for at, held in enumerate(every) if held.drew
            ]
            self._grammars.expect([(at, found) for at, found in grammars if found is not None], inputs)
        given = mx.array(np.frombuffer(logits, np.float32).reshape(len(every), -1))
        drawn, scores, _ = draw([held.row for held in every], [held.context for held in every], inputs, given)
        tokens: Any = drawn.tolist()
        for held, token, score in zip(every, tokens, scores, strict=True):
            held.fed, held.drew = token, True
            if held.row.scored:
                held.scores.append(score)
        return list(tokens)


__all__ = ["FACTOR", "LEAST", "LeadingDecoder"]
