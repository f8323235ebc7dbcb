"""The ledger: nothing is loaded that was not reserved, and idle models make room."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .._scheduling.task import Task
from ..errors import InsufficientMemoryError, QueueFullError
from .line import Line
from .live import LiveModel
from .reservations import Reservations

if TYPE_CHECKING:
    from ..memory import Eviction

log = logging.getLogger("mlxengine.memory")


class Ledger:
    """Charges each model to the budget before it is loaded, and evicts idle ones to make room.

    Args:
        budget: bytes for all models of this engine; called when first needed. ``None``: no limit is known.
        evict: takes a model out of memory, and returns the bytes that came back (``None``: unknown).
        trim: makes a model's caches hold at most so many bytes.
    """

    def __init__(
        self,
        budget: Callable[[], int | None],
        evict: Callable[[LiveModel], int | None],
        trim: Callable[[LiveModel, int], None] = lambda _live, _most: None,
        reservations: Reservations | None = None,
    ) -> None:
        self._find_budget = budget
        self._budget: int | None = None
        self._budget_known = False
        self._evict = evict
        self._trim = trim
        self._others = 0  # what other engines held when that was last asked
        self._shared = reservations or Reservations()
        self._lock = threading.Lock()
        self._charged: dict[object, int] = {}
        self._models: dict[LiveModel, int] = {}
        self.evictions: list[Eviction] = []
        self.line = Line()

    @property
    def budget(self) -> int | None:
        """Bytes that all models may take together."""
        if not self._budget_known:
            self._budget, self._budget_known = self._find_budget(), True
        return self._budget

    @property
    def reserved(self) -> int:
        """Bytes that are charged now, and what caches and requests beyond the estimate hold."""
        states = [live.state for live in list(self._models)]
        return sum(list(self._charged.values())) + sum(state.requests + state.caches for state in states)

    @property
    def caches(self) -> int:
        """Bytes that the models keep for requests to come."""
        return sum(live.state.caches for live in list(self._models))

    def cache_room(self) -> int | None:
        """Bytes by which caches may grow now, negative if they hold too much; ``None`` without a budget.

        Asked on the scheduler's thread, which must not wait for the lock: who holds it may wait for a step.
        """
        return None if self.budget is None else self.budget - self._others - self.reserved

    @property
    def others(self) -> int:
        """Bytes that other engines of this user hold."""
        self._others = self._shared.others()
        return self._others

    def refuse_hopeless(self, name: str, need: int) -> None:
        """Raise before anything is downloaded if a model could not fit even alone.

        Raises:
            InsufficientMemoryError: it needs more than the whole budget.
        """
        from .._units import human

        if self.budget is not None and need > self.budget:
            raise InsufficientMemoryError(
                f"{name} needs about {human(need)}, and the whole budget is {human(self.budget)}.",
                hint="Take a smaller or more strongly quantized variant, or raise memory_budget.",
            )

    def reserve(self, owner: object, name: str, need: int) -> None:
        """Charge ``need`` bytes, evicting idle models (least recently used first) until they fit.

        Raises:
            InsufficientMemoryError: it does not fit beside what is busy, pinned or kept.
        """
        self.refuse_hopeless(name, need)
        with self._lock:
            while True:
                short = self._short_by(need)
                if short <= 0 or not need:
                    self._charged[owner] = need
                    return
                idle = sorted((item for item in self._models if item.idle), key=lambda item: item.last_used)
                if sum(self._charged.get(item, 0) for item in idle) + self.caches < short:
                    raise self._refusal(name, need, short)
                if self._drop_caches(short):
                    continue
                if not idle:
                    raise self._refusal(name, need, short)
                self._make_room(idle[0], f"to make room for {name}")

    def _drop_caches(self, wanted: int) -> int:
        """Make models let go of ``wanted`` bytes of caches, the least recently used first; how many went."""
        gone = 0
        for live in sorted(self._models, key=lambda item: item.last_used):
            held = live.state.caches
            if gone >= wanted or not held:
                continue
            self._trim(live, max(0, held - (wanted - gone)))
            gone += held - live.state.caches
        if gone:
            log.info("Caches of %d bytes went to make room", gone)
        return gone

    def ease(self, reason: str) -> int:
        """Let all caches go, else the idle model that was used least recently; the bytes charged for it."""
        with self._lock:
            gone = self._drop_caches(self.caches)
            idle = sorted((item for item in self._models if item.idle), key=lambda item: item.last_used)
            if not gone and idle:
                gone = self._charged.get(idle[0], 0)
                self._make_room(idle[0], reason)
            self._share()
        if gone:
            log.warning("%d bytes were let go %s", gone, reason)
        return gone

    def relieve(self, asking: LiveModel) -> int:
        """Memory ran out in spite of the account: let all caches and every other idle model go.

        Returns the bytes that were charged for them.
        """
        with self._lock:
            gone = self._drop_caches(self.caches)
            for live in [item for item in self._models if item.idle and item is not asking]:
                gone += self._charged.get(live, 0)
                self._make_room(live, f"because memory ran out under {asking.card.id}")
            self._share()
        return gone

    def _short_by(self, need: int) -> int:
        """Bytes that are missing for ``need`` more; this user's other engines count too."""
        if self.budget is None:
            return 0
        mine = self.reserved + need
        others = self._shared.claim(mine, self.budget)
        if others is None:
            return 0
        self._others = others
        return mine + others - self.budget

    def _refusal(self, name: str, need: int, short: int) -> InsufficientMemoryError:
        from .._units import human

        held = [
            f"{item.card.id} ({human(self._charged.get(item, 0))}, {item.why_kept})"
            for item in self._models
            if not item.idle and not item.evicted
        ]
        others = self._shared.others()
        if others:
            held.append(f"other processes ({human(others)})")
        loading = len(self._charged) - sum(1 for item in self._models if item in self._charged)
        if loading:
            held.append(f"{loading} model(s) being loaded")
        return InsufficientMemoryError(
            f"{name} needs about {human(need)}; {human(short)} more than is free of the budget of "
            f"{human(self.budget or 0)}.",
            hint=f"What holds memory: {', '.join(held) or 'nothing that could go'}. Close or unpin one, "
            "raise memory_budget, or load it with wait_for_memory.",
        )

    def _make_room(self, live: LiveModel, reason: str) -> None:
        from ..memory import Eviction

        expected = (live.weights or 0) + live.state.caches
        freed = self._evict(live)
        self._charged.pop(live, None)
        event = Eviction(id=live.card.id, reason=reason, expected=expected, freed=freed)
        self.evictions.append(event)
        level = logging.WARNING if event.short else logging.INFO
        log.log(
            level, "Evicted %s %s: expected %d bytes back, got %s", event.id, reason, expected, event.freed
        )

    def use(self, live: LiveModel, task: Task, bound: int | None = None) -> bool:
        """Count a request on a model, which keeps it from now on as it is: in memory, or out of it.

        Returns:
            Whether it may go on; else it is held, and keeps nothing, until `Line.moved` is called.

        Raises:
            QueueFullError: ``bound`` requests wait for it already.
        """
        with self._lock:
            if bound is not None and (waiting := live.waiting) >= bound:
                raise QueueFullError(
                    f"{waiting} requests wait for {live.card.id}, and core.max_waiting is {bound}.",
                    hint="Try again later, or load the model with a higher core.max_waiting.",
                )
            live.tasks.add(task)
            stays = live.pinned or live.inhibitors or live.evicted
            if stays or not self.line.pressing:
                return True
            live.held.append(task)
            return False

    def evict(self, live: LiveModel, reason: str) -> bool:
        """Take an idle model out of memory; ``False`` if it is in use, kept, or out already."""
        with self._lock:
            if not live.idle or live not in self._models:
                return False
            self._make_room(live, reason)
            self._share()
            return True

    def settle(self, owner: object, live: LiveModel, need: int) -> None:
        """A load is over: its model is charged from now on, with what it really took."""
        with self._lock:
            self._charged.pop(owner, None)
            self._charged[live] = need
            self._models[live] = need
            self._share()

    def release(self, owner: object) -> None:
        """Forget a charge: a load that failed, or a model that was closed."""
        with self._lock:
            self._charged.pop(owner, None)
            if isinstance(owner, LiveModel):
                self._models.pop(owner, None)
            self._share()

    def charged(self, live: LiveModel) -> int:
        """Bytes that a model is charged with."""
        return self._charged.get(live, 0)

    def publish(self, models: Sequence[Mapping[str, object]], loads: Sequence[Mapping[str, object]]) -> None:
        """Tell other processes what the models are and hold, and what is being loaded."""
        with self._lock:
            self._shared.set(self.reserved, models, loads)

    def _share(self) -> None:
        self._shared.set(self.reserved)
