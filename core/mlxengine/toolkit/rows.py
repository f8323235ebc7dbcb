"""One continuous batch per model, shared by the requests of all callers, whatever decodes it.

A row is one answer being generated. Every reader's ``next`` may advance the batch, which decodes one
token for all rows and reads a piece of the prompts that are waiting. Nothing that belongs to one row may
raise inside that step, because the caches of the others would be left advanced; if the step itself
raises, the batch is thrown away and the surviving rows are rebuilt from their tokens. If memory ran out,
fewer of them at once: the newest wait until others are done, and go on where they were. The same where the
rows' caches would grow beyond what the account has room for: then before it happens.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence

from .._machine.backend import clear_cache
from ..contract.hookspecs import ModelState
from ..errors import GenerationError, RankLostError, out_of_memory
from .account import Account
from .pace import Pace
from .room import Room, cannot_grow, ran_out_alone
from .row import PATIENCE, Decoder, Drawn, Plan, Row, Stepped
from .sampling import SeededSampler

_log = logging.getLogger("mlxengine.toolkit.rows")

STALL = 64
"""A row with this many unread events is taken out of the batch until its reader comes back."""

NAP = 0.002
"""Seconds of a step in which all rows wait for what `Row.ready` asks for."""


class SharedBatch:
    """The rows of one model around one `Decoder`, which is opened when a row needs it.

    All methods are called on one thread. The stream that is the default when the first row is decoded
    is used throughout.

    Args:
        open_decoder: makes a decoder for at most so many rows.
        max_rows: most rows that decode together; further ones wait.
        stall_factor: while answers run, a step takes at most this multiple of one that only decodes.
        relieve: gives back memory that nobody needs now (caches), when it has run out.
        account: what rows are charged with as their caches grow. Those that do not fit beside others wait;
            one that does not fit alone fails.
        first_piece: tokens of a prompt that are read at once before anything is known of the speed.
        preempts: whether a row that decodes is parked, with its cache, for one of a higher priority that
            finds no place; it goes on when there is one again.
    """

    def __init__(
        self,
        open_decoder: Callable[[int], Decoder],
        *,
        max_rows: int = 32,
        stall_factor: float = 8.0,
        relieve: Callable[[], None] = lambda: None,
        account: Account | None = None,
        first_piece: int = Pace.FIRST,
        preempts: bool = False,
    ) -> None:
        self._open = open_decoder
        self.max_rows = max_rows
        self.room = Room(max_rows)
        self._relieve = relieve
        self.account = account or Account()
        self._preempts = preempts
        self._crowded = False
        self._aside: list[Row] = []  # parked, with their caches
        self._decoder: Decoder | None = None
        self._rows: list[Row] = []
        self._waiting: list[Row] = []
        self.pace = Pace(stall_factor, first_piece)
        self.step_seconds: float | None = None  # what the step that runs should take; read on any thread
        self._decoded = 0  # rows of the last step
        self._read_before = False  # whether the last step read prompts: this one may wait for them
        self._steps = 0
        self._stuck = 0
        self._suspect: Row | None = None

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    @property
    def cost(self) -> int:
        """Bytes that the rows that are in, or parked with their caches, are charged with."""
        return self._bytes(lambda row: row.cost)

    def _bytes(self, of: Callable[[Row], int], more: Row | None = None) -> int:
        """Of all caches, perhaps with one row more inside: in a batch each is as long as the longest."""
        inside = [of(row) for row in (*self._rows, *([] if more is None else [more]))]
        parked = sum(of(row) for row in tuple(self._aside) if row is not more)
        return (len(inside) + self._spare) * max(inside, default=0) + parked

    @property
    def _spare(self) -> int:
        decoder = self._decoder
        return 0 if decoder is None else decoder.spare

    @property
    def inside(self) -> int:
        """Rows that have a place."""
        return len(self._rows)

    @property
    def caching(self) -> tuple[Row, ...]:
        """The rows that have a cache: those inside, and those that are parked."""
        return (*self._rows, *self._aside)

    @property
    def degraded(self) -> str | None:
        """Why fewer rows than ``max_rows`` decode together, where that is for want of memory."""
        if self._crowded and self._waiting and self._rows:
            return f"there is memory for {len(self._rows)} requests at once; {len(self._waiting)} wait"
        return self.room.reason

    def affords(self, rows: int, tokens: int) -> bool:
        """Whether there is memory for so many more rows of so many tokens."""
        return self.account.affords(self.cost + rows * self.account.cost_of(tokens), self.cost)

    def state(self) -> ModelState:
        """What the rows take, and whether fewer than usual are served together; asked on any thread."""
        account, cost = self.account, self.cost
        return ModelState(
            caches=account.kept(),
            requests=account.beyond(cost),
            degraded=self.degraded,
            shortages=self.room.shortages,
            rows=self.inside,
            kv_used=self._bytes(lambda row: account.cost_of(row.size)),
            kv_total=max(account.reserved, cost),
        )

    def admit(self, row: Row) -> None:
        """Queue a row; it enters at the next step in which there is room."""
        if row not in self._waiting:
            row.since = row.since or time.monotonic()
            self._waiting.append(row)

    def remove(self, row: Row) -> None:
        """Take a row out at once, wherever it is."""
        row.done = True
        self._forget(row)
        if row in self._waiting:
            self._waiting.remove(row)
        self._take_out([row])

    def poll(self, row: Row, budget_ms: float) -> None:
        """Called by a reader that has nothing to read: advance the batch, if it is this reader's turn.

        While other rows hold unread events, a reader's first call since the last step does nothing, so
        that the others' readers get their turn; a second call means that a whole round has passed.
        """
        if row.aside and row not in self._waiting:
            self.admit(row)
        first = row.seen != self._steps
        self.touch(row)
        if first and any(other.unread for other in self._rows if other is not row):
            return
        self.advance(budget_ms)
        self.touch(row)

    def touch(self, row: Row) -> None:
        """Note that the row's reader had its turn since the last step."""
        row.seen = self._steps

    def advance(self, budget_ms: float) -> None:
        """One step: admit what waits, decode a token of every row, read a piece of the prompts."""
        self._steps += 1
        try:
            decoder = self._enter()
            self._grow()
            if decoder is None or not self._rows:
                if self._waiting:  # for something that another thread makes: leave it the processor
                    time.sleep(NAP)
                return
            began = time.perf_counter()
            running = any(not row.reading for row in self._rows)
            plan = self._plan(budget_ms, running=running)
            self.step_seconds = plan.seconds
            done = decoder.step(plan)
            self.step_seconds = None
            self.pace.observe(done, time.perf_counter() - began)
            if done.drawn:
                self._stuck = 0
                self.room.calm()
            for item in done.drawn:
                self._give(item)
            if self._suspect is not None and not self._suspect.reading:
                self._suspect = None
            # What a row leaves behind, its cache for example, takes memory too.
            self._take_out([row for row in self._rows if row.done or row.failure])
            for row in [row for row in self._rows if row.unread > STALL]:
                self._park(decoder, row)
        except Exception as error:
            self.step_seconds = None
            self._recover(error)

    def _expected(self, tokens: int) -> float | None:
        """Seconds that a step should take; rows that are more than in the last one cost as much as those."""
        rows, before = len(self._rows), self._decoded
        reads, read = any(row.reading for row in self._rows), self._read_before
        self._decoded, self._read_before = rows, reads
        seconds = self.pace.expected(tokens if reads or read else 0)
        return None if seconds is None else seconds * max(1.0, rows / max(before, 1))

    def _plan(self, budget_ms: float, *, running: bool) -> Plan:
        tokens = self.pace.tokens(budget_ms, running=running)
        return Plan(
            tokens=tokens,
            now=time.monotonic(),
            token_seconds=self.pace.token_seconds or 0.0,
            worth=self.pace.worth,
            seconds=self._expected(tokens),
        )

    def close(self) -> None:
        """Drop all rows and the batch."""
        for row in (*self._rows, *self._waiting):
            row.done = True
            row.inside = False
        self._rows.clear()
        self._waiting.clear()
        self._aside.clear()
        self._discard()

    def _give(self, item: Drawn) -> None:
        row = item.row
        row.reading = False
        if row.done or row.failure:
            return
        row.tokens.append(item.token)
        try:
            row.take(item.token, item.logprobs)
        except Exception as error:
            row.fail(error)

    def _enter(self) -> Decoder | None:
        if self._decoder is None and self._waiting:
            self._decoder = self._open(self.max_rows)
        while self._decoder is not None and self._waiting and self._suspect is None:
            full = len(self._rows) >= self.room.now
            if full and not self._outranked():
                break
            free = [item for item in self._waiting if not self._must_wait(item)]
            if not free:
                break
            now = time.monotonic()
            row = min(free, key=lambda item: (-item.priority if full else 0, item.standing(now)))
            fits = self._fits(row)
            self._crowded = bool(self._rows) and not fits
            if self._crowded or (full and not self._make_way(self._decoder, row)):
                break
            self._waiting.remove(row)
            if not fits:
                row.fail(self._refusal(row))
            if row.failure is not None:
                continue
            try:
                self._insert(self._decoder, row)
            except Exception as error:
                if out_of_memory(error) and self._rows:
                    self._shrink(len(self._rows) + 1, len(self._rows), [row])
                    break
                row.fail(ran_out_alone(error) if out_of_memory(error) else error)
                continue
            if self._stuck > 1:  # something raises in every step: let rows in one by one to find it
                self._suspect = row
        return self._decoder

    def _fits(self, row: Row) -> bool:
        """Whether there is memory for a row that waits; alone it takes that of those that are parked."""
        account, parked = self.account, row in self._aside
        if not parked:
            account.charge(row)
        while not account.affords(self._bytes(lambda item: item.cost, row), self.cost):
            if self._tidied():
                continue
            if self._rows:
                return False
            others = [item for item in self._aside if item is not row]
            if not others:
                return parked or account.affords(account.charge(row, 1), 0)
            self._forget(self._last(others))
        return True

    def _grow(self) -> None:
        """Charge the rows that come to the end of what they are charged for.

        Where there is no room for them all, caches go until what is left fits: first those of parked rows,
        then those of rows that decode, each time the newest of the lowest priority, which wait with their
        tokens. A row that is left alone gets what it needs for one token more, or fails.
        """
        growing = [row for row in self._rows if row.size >= row.charged]
        for row in growing:
            self.account.charge(row)
        while growing and not self.account.affords(self.cost, self.cost):
            if self._tidied():
                continue
            if self._aside:
                self._forget(self._last(self._aside))
                continue
            row = self._last(self._rows)
            if len(self._rows) == 1:
                growing = []
                if self.account.affords(self.account.charge(row, 1), row.cost):
                    break
                row.fail(self._refusal(row))
            self._take_out([row])
            if row.failure is None:
                self._crowded = True
                self._waiting.append(row)

    def _tidied(self) -> bool:
        """Whether there were places that nobody has; they are given up."""
        if not self._spare:
            return False
        assert self._decoder is not None
        self._decoder.tidy()
        return True

    def _refusal(self, row: Row) -> Exception:
        held = row.cost if row.inside else 0
        return cannot_grow(row.size, row.cost, self.account.short(row.cost, held))

    @staticmethod
    def _last(rows: Sequence[Row]) -> Row:
        """Who makes way first: of the lowest priority, the row that came last."""
        return min(rows, key=lambda row: (row.priority, -row.since))

    def _forget(self, row: Row) -> None:
        """Let go of the cache of a parked row, which goes on from its tokens."""
        row.kept = None
        if row in self._aside:
            self._aside.remove(row)

    def _outranked(self) -> bool:
        """Whether one that waits may push out one that is in."""
        return self._preempts and max(row.priority for row in self._waiting) > min(
            row.priority for row in self._rows
        )

    def _make_way(self, decoder: Decoder, row: Row) -> bool:
        """Park a row of a lower priority than this one: of the lowest, the one that came last."""
        below = [other for other in self._rows if other.priority < row.priority and not other.reading]
        for other in sorted(below, key=lambda item: (item.priority, -item.since)):
            self._park(decoder, other)
            if not other.inside:
                return len(self._rows) < self.room.now
        return False

    def _must_wait(self, row: Row) -> bool:
        try:
            if not row.ready():
                return True
        except Exception as error:
            row.fail(error)
            return False
        leader = row.after
        return leader is not None and leader.reading and (leader.inside or leader in self._waiting)

    def _insert(self, decoder: Decoder, row: Row) -> None:
        if isinstance(row.sampler, SeededSampler):
            row.sampler.position = len(row.tokens)
        row.reading = True
        decoder.insert(row)
        row.inside, row.aside = True, False
        self._rows.append(row)
        self._forget(row)

    def _take_out(self, rows: Sequence[Row]) -> None:
        leaving = [row for row in rows if row.inside]
        self._rows = [row for row in self._rows if not any(row is other for other in leaving)]
        if leaving and self._decoder is not None:
            self._decoder.remove(leaving)
        for row in rows:
            row.inside = False
            if row is self._suspect:
                self._suspect = None
        if (self.account.room() or 0) < 0:  # what they leave for requests to come, beside their places
            self._tidied()

    def _park(self, decoder: Decoder, row: Row) -> None:
        """Take a row out with its cache; the token that is already drawn is handed over first."""
        parked = decoder.park(row)
        if parked is None:
            return
        drawn, kept = parked
        self._rows.remove(row)
        row.inside = False
        self._give(drawn)
        if not row.done and not row.failure:
            row.aside, row.kept = True, kept
            self._aside.append(row)

    def _recover(self, error: Exception) -> None:
        """Rebuild after a step that raised; when steps keep raising, find the row that is to blame."""
        _log.warning("A step of the batch failed and is done again: %r", error)
        rows = [row for row in self._rows if not row.done and not row.failure]
        opened = self._decoder is not None
        if short := out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # they hold arrays
        self._rows.clear()
        self._discard()
        for row in rows:
            row.inside = False
            row.kept = None
        if short and len(rows) > 1:
            self._suspect = None
            self._shrink(len(rows), len(rows) // 2, rows)
            return
        if short:
            self._relieve()
        self._stuck += 1
        failed = ran_out_alone if short else _failed
        if (not opened or not rows) and self._stuck > 1:  # there is nothing to serve anybody with
            for row in self._waiting:
                row.fail(failed(error))
            self._waiting.clear()
        elif self._suspect is not None or (len(rows) == 1 and self._stuck > 1):
            blamed = self._suspect or rows[0]
            blamed.fail(failed(error))
            rows = [row for row in rows if row is not blamed]
            self._suspect = None
        self._waiting[:0] = rows

    def _shrink(self, failed: int, left: int, rows: Sequence[Row]) -> None:
        """Memory ran out: fewer rows together from now on; the longest waiting ones come back first."""
        self.room.shrink(failed, left)
        self._relieve()
        self._waiting[:0] = rows

    def _discard(self) -> None:
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
        del decoder
        clear_cache()


def _failed(error: Exception) -> GenerationError:
    if isinstance(error, RankLostError):
        return error
    failure = GenerationError(f"The model failed while it served this request: {error}.")
    failure.__cause__ = error
    return failure


__all__ = ["PATIENCE", "STALL", "Decoder", "Drawn", "Plan", "Row", "SharedBatch", "Stepped"]
