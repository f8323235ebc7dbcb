"""Several answers to one request: rows that share the reading of their prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import attrs

from ..contract.events import Event, Finished
from ..contract.hookspecs import RunContext
from ..contract.tokens import TokenUsage
from ..text.outputs import ChoiceFinished
from ..text.params import GenerateParams
from .answers import Answer, AnswerStream, Voice
from .rows import SharedBatch


def choices(
    voice: Voice,
    prompt: Sequence[int],
    params: GenerateParams,
    *,
    streaming: bool = True,
    priority: int = 0,
    make: type[Answer] = Answer,
) -> list[Answer]:
    """The ``params.n`` answers to one prompt, which is read for the first of them.

    The caller has seen to ``params.adapter``. ``make`` may be a subclass of the plugin's own.
    """
    found: list[Answer] = []
    for index in range(params.n):
        seed = None if params.seed is None else (params.seed + index) % 2**64
        own = attrs.evolve(params, n=1, adapter=None, seed=seed)
        found.append(make(voice, prompt, own, streaming=streaming, priority=priority, index=index))
        found[-1].after = found[0] if index else None
    return found


class ChoicesStream(Iterator[Event | None]):
    """Several answers to one request, each told apart by its events' ``index``; one `Finished` at the end."""

    def __init__(self, batch: SharedBatch, answers: Sequence[Answer], context: RunContext) -> None:
        self._batch = batch
        self._answers = tuple(answers)
        self._live = deque(AnswerStream(batch, answer, context) for answer in answers)
        self._ends: list[Finished] = []
        self._ready: deque[Event] = deque()

    def __next__(self) -> Event | None:
        if self._ready:
            return self._ready.popleft()
        if not self._live:
            raise StopIteration
        for _ in range(len(self._live)):
            stream = self._live[0]
            self._live.rotate(-1)
            try:
                event = next(stream)
            except Exception:
                self.close()
                raise
            if isinstance(event, Finished):
                self._live.remove(stream)
                self._ends.append(event)
                if not self._live:
                    self._ready.append(_together(self._ends))
                return ChoiceFinished(
                    index=event.index,
                    reason=event.reason,
                    completion_tokens=TokenUsage.of(event.usage).completion_tokens,
                    stop=event.stop,
                )
            if event is not None:
                return event
        return None

    @property
    def usage(self) -> TokenUsage:
        """What was used so far."""
        parts = [answer.usage for answer in self._answers]
        return _used(parts, parts[0])

    @property
    def waiting(self) -> bool:
        """Whether none of the rows has a place in the batch yet."""
        return not self._ends and all(stream.waiting for stream in self._live)

    @property
    def step_seconds(self) -> float | None:
        """What the batch's step should take."""
        return self._batch.step_seconds

    def close(self) -> None:
        """Cancel what is left."""
        self._ready.clear()
        while self._live:
            self._live.pop().close()


def _used(parts: Sequence[TokenUsage], first: TokenUsage) -> TokenUsage:
    """All answers' tokens behind the one prompt, which was read for the first."""
    return attrs.evolve(
        first,
        completion_tokens=sum(part.completion_tokens for part in parts),
        reasoning_tokens=sum(part.reasoning_tokens for part in parts),
    )


def _together(ends: Sequence[Finished]) -> Finished:
    first = min(ends, key=lambda event: event.index)
    rates = [event.metrics.generation_per_second or 0.0 for event in ends]
    return attrs.evolve(
        first,
        index=0,
        usage=_used([TokenUsage.of(event.usage) for event in ends], TokenUsage.of(first.usage)),
        metrics=attrs.evolve(ends[-1].metrics, generation_per_second=sum(rates)),
    )


__all__ = ["ChoicesStream", "choices"]
