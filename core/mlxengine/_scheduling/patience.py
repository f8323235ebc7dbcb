"""How long a step may take before it is taken for one that never returns.

A step has no bound of its own: a device may compile for a size that it has not met, a prompt may be read
whole, a picture's last step is not like those before it. So a step is judged only where something is known of
it: by what its iterator says that it should take (``step_seconds``), or else by earlier steps of the same
requests that followed the same kind of event. Of any other nothing is said, however long it takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import define

from ..contract.events import Event, Progress

if TYPE_CHECKING:
    from .task import Task

LEAST = 0.75  # seconds that any step may take: another program has the processor, memory is swapped
FACTOR = 8.0  # of what is usual
SELDOM = 2.0  # of the longest: one step that was late must not make all others seem quick
KNOWN = 3  # steps that make something usual
_ABSENT = object()


@define(eq=False)
class Usual:
    """How long a request's steps took since it began to say what it says now."""

    steps: int = 0
    total: float = 0.0
    longest: float = 0.0
    _said: object = None

    def note(self, event: Event | None, seconds: float) -> None:
        """Learn from a step; one that says something new belongs to what came before."""
        if event is not None:
            said = _kind(event)
            if said != self._said:
                self._said, self.steps, self.total, self.longest = said, 0, 0.0, 0.0
                return
        if self._said is not None:
            self.steps += 1
            self.total += seconds
            if seconds > self.longest:
                self.longest = seconds


def _kind(event: Event) -> object:
    if isinstance(event, Progress):
        return event.stage, event.total is not None and event.done >= event.total
    return type(event)


def patience(task: Task, others: Iterable[Task]) -> float | None:
    """Seconds that the step of a task may take; ``None`` where nothing tells.

    Args:
        task: whose step it is.
        others: the tasks of its model: what they need may be done in the same step.
    """
    stated = getattr(task.iterator, "step_seconds", _ABSENT)
    if stated is not _ABSENT:
        return max(LEAST, FACTOR * stated) if isinstance(stated, int | float) else None
    usual = [item.usual for item in (task, *others) if not item.waiting]
    if any(item.steps < KNOWN for item in usual):
        return None
    mean = max(item.total / item.steps for item in usual)
    return max(LEAST, FACTOR * mean, SELDOM * max(item.longest for item in usual))


__all__ = ["Usual", "patience"]
