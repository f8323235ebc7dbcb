"""The clauses about how long a loaded model keeps others waiting, and how much it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .._scheduling.channel import weight
from ._behaviour import same
from ._clauses import Part, clause, demand
from ._subject import Run, Subject

_STATE_SECONDS = 0.05


@clause(
    Part.BEHAVIOUR,
    "each slice of Loaded.warm is short",
    why="it runs between the steps of other models' requests, which wait for it.",
)
def warm_slices_are_short(subject: Subject) -> None:
    _short(subject, "a slice of warm", lambda: (subject.loaded, subject.warmed)[1], _warmed_again)


def _warmed_again(subject: Subject) -> Sequence[float]:
    subject.close(subject.load(subject.claimed_files()))
    return subject.warmed


def _short(
    subject: Subject,
    what: str,
    first: Callable[[], Sequence[float]],
    again: Callable[[Subject], Sequence[float]],
) -> None:
    """The longest step; a busy machine, and kernels that had to be compiled, are not the plugin's."""
    limit = subject.specimen.step_seconds
    longest = max(first(), default=0.0)
    if longest > limit:
        longest = min(longest, max(again(subject), default=0.0))
    demand(longest <= limit, f"{what} took {longest:.2f} s, the quicker of two runs (limit {limit:g})")


@clause(
    Part.BEHAVIOUR,
    "every request comes to its end",
    why="its caller waits for that; a request that never ends takes its share of the device for ever.",
)
def requests_end(subject: Subject) -> None:
    demand(len(subject.solo) == len(subject.specimen.examples), "an example was not run")


@clause(
    Part.BEHAVIOUR,
    "each step of a request is short",
    why="every other request waits for it; cut what can be cut, as RunContext.budget_ms says.",
)
def steps_are_short(subject: Subject) -> None:
    def longest(runs: Sequence[Run]) -> list[float]:
        return [max(run.steps, default=0.0) for run in runs]

    _short(subject, "a step", lambda: longest(subject.solo), lambda again: longest(again.each_alone()))


@clause(
    Part.BEHAVIOUR,
    "no event holds more than a few megabytes",
    why="events wait for their readers; what a reader has not taken is memory that no budget knows.",
)
def events_are_small(subject: Subject) -> None:
    limit = subject.specimen.event_bytes
    for number, run in enumerate(subject.solo):
        for event in run.events:
            held = weight(event)
            demand(
                held <= limit,
                f"example {number}: a {type(event).__name__} of {held:,} bytes (limit {limit:,})",
            )


@clause(
    Part.BEHAVIOUR,
    "the model tells what it keeps, quickly, and lets go of it when it is asked to",
    why="state() is asked while others load, and what it says is booked; trim() is how room is made.",
)
def state_is_told(subject: Subject) -> None:
    answers, loaded = subject.solo, subject.loaded
    begun = time.perf_counter()
    kept = loaded.state()
    took = time.perf_counter() - begun
    demand(took <= _STATE_SECONDS, f"state() took {took * 1000:.0f} ms (limit {_STATE_SECONDS * 1000:.0f})")
    subject.lane.step(lambda: loaded.trim(0))
    left = loaded.state().caches
    demand(left <= min(kept.caches, subject.specimen.slack_bytes), f"{left:,} bytes were left by trim(0)")
    for number, (example, alone) in enumerate(zip(subject.specimen.examples, answers, strict=True)):
        [again] = subject.run(loaded.model, [example.request])
        changed = same(subject, alone, again)
        demand(changed is None, f"example {number}, after trim(0): {changed}")
