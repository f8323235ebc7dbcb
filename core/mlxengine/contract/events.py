"""What a running request says. Consumers ignore events they do not know.

Payloads are host bytes with a shape and a dtype name, never lazy arrays, so an event may be kept,
sent to another thread or pickled. Every stream ends with exactly one `Finished`, or with an exception.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from attrs import field, fields, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    import numpy as np


@frozen(kw_only=True)
class Event:
    """Base of every event.

    ``index`` tells the choices of one request apart (``n`` > 1, pictures); ``mock`` marks what the mock
    back end made.
    """

    index: int = 0
    mock: bool = False


@frozen(kw_only=True)
class Waiting(Event):
    """What a plugin's iterator yields when it can do nothing before ``until`` is done.

    It is for the scheduler alone: the iterator is set aside, at no cost to others, and asked again once the
    future is done, however that ended. The caller never sees it.
    """

    until: Future[Any]


@frozen(kw_only=True)
class Progress(Event):
    """How far a stage is: ``done`` of ``total`` (``None``: unknown), counted in ``unit``."""

    stage: str
    done: float
    total: float | None = None
    unit: str = "steps"


@frozen(kw_only=True)
class Array:
    """Host memory: C-ordered ``data`` of ``shape`` and a numpy ``dtype`` name."""

    data: bytes | memoryview = field(repr=lambda value: f"<{len(value)} bytes>")
    shape: tuple[int, ...]
    dtype: str

    def numpy(self) -> np.ndarray[Any, Any]:
        """A read-only numpy view of the same memory (numpy must be installed)."""
        import numpy as np

        view: np.ndarray[Any, Any] = np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        import numpy as np

        found: np.ndarray[Any, Any] = np.array(self.numpy(), dtype=dtype, copy=copy)
        return found

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("An array without dimensions has no length.")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """The rows, as numpy has them."""
        return iter(self.numpy())

    def __getitem__(self, index: Any) -> Any:
        """What numpy gives for the index: a row, rows, an element; a view of the same memory where it can."""
        return self.numpy()[index]

    def __dlpack__(self, **options: Any) -> Any:
        """The memory for another library, which has to take memory that must not be written to."""
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self.numpy().__dlpack_device__()
        return int(kind), number


class FinishReason(enum.StrEnum):
    """Why a request ended; ``length`` is the request's own limit, ``context`` the end of the model's."""

    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"
    TOOL_CALLS = "tool_calls"
    DONE = "done"


@frozen(kw_only=True)
class Usage:
    """What a request used, in its kind's own units; a kind subclasses it, one number for each unit."""

    @property
    def counts(self) -> dict[str, float]:
        """The numbers by unit."""
        return {item.name: getattr(self, item.name) for item in fields(type(self))}


@frozen(kw_only=True)
class Metrics:
    """Times in seconds since the request was submitted, rates per second, memory in bytes.

    ``extra`` holds what only one kind measures, as ``(name, value)`` pairs.
    """

    queue_seconds: float = 0.0
    first_event_seconds: float | None = None
    total_seconds: float = 0.0
    device_seconds: float = 0.0
    prompt_per_second: float | None = None
    generation_per_second: float | None = None
    peak_memory_bytes: int | None = None
    extra: tuple[tuple[str, float], ...] = ()


@frozen(kw_only=True)
class Finished(Event):
    """The end of a request, exactly once and last.

    A plugin fills ``reason``, ``usage`` and the metrics that it knows; the scheduler adds the times.
    ``stop`` is the stop text or token that matched.
    """

    reason: FinishReason = field(default=FinishReason.DONE, converter=FinishReason)
    usage: Usage = Usage()
    metrics: Metrics = Metrics()
    stop: str | int | None = None


__all__ = [
    "Array",
    "Event",
    "FinishReason",
    "Finished",
    "Metrics",
    "Progress",
    "Usage",
    "Waiting",
]
