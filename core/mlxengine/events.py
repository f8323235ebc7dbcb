"""What a running request says. Consumers ignore events they do not know.

Payloads are host bytes with a shape and a dtype name, never lazy arrays, so an event may be kept,
sent to another thread or pickled. Every stream ends with exactly one `Finished`, or with an exception.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from .configuration import freeze

if TYPE_CHECKING:
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
class Progress(Event):
    """How far a stage is: ``done`` of ``total`` (``None``: unknown), counted in ``unit``."""

    stage: str
    done: float
    total: float | None = None
    unit: str = "steps"


@frozen(kw_only=True)
class TopLogprob:
    """One alternative at a position: its token id, text and natural-log probability."""

    token_id: int
    text: str
    logprob: float


@frozen(kw_only=True)
class TokenLogprob(TopLogprob):
    """The chosen token, and the best alternatives, most probable first."""

    top: tuple[TopLogprob, ...] = ()


@frozen(kw_only=True)
class TextDelta(Event):
    """A piece of the answer. The deltas joined are the whole answer, to the letter.

    ``token_ids`` are the tokens generated since the last delta; text that could still become part of a
    stop string or of a character waits for the next one.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@frozen(kw_only=True)
class ReasoningDelta(Event):
    """A piece of the model's reasoning, which is not part of the answer."""

    text: str
    token_ids: tuple[int, ...] = ()


@frozen(kw_only=True)
class ToolCall(Event):
    """A complete tool call; ``arguments`` is ``None`` where ``raw`` could not be parsed (``error``: why)."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None = field(default=None, converter=freeze)
    raw: str = ""
    error: str | None = None


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


@frozen(kw_only=True)
class Embeddings(Event):
    """Vectors of the texts ``indices`` (positions in the request), in that order.

    ``vectors`` has shape (len(indices), dimension); for token output, one array per text is in ``tokens``.
    ``truncated`` are the positions of texts that were longer than the model takes.
    """

    indices: tuple[int, ...]
    vectors: Array | None = None
    tokens: tuple[Array, ...] = ()
    truncated: tuple[int, ...] = ()


@frozen(kw_only=True)
class Scores(Event):
    """Relevance of the documents ``indices`` to the query, higher is better."""

    indices: tuple[int, ...]
    scores: tuple[float, ...]


@frozen(kw_only=True)
class TextScore(Event):
    """Natural-log probability of each of ``token_ids``, given all before it; the very first has none."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The text's log-probability."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        return math.exp(-self.total / len(self.logprobs))


@frozen(kw_only=True)
class ImagePreview(Event):
    """A rough picture of what is being made, shape (height, width, 3), uint8."""

    step: int
    pixels: Array


@frozen(kw_only=True)
class ImageReady(Event):
    """A finished picture, shape (height, width, 3), uint8, and the recipe that makes it again."""

    pixels: Array
    recipe: Mapping[str, Any] = field(factory=dict, converter=freeze)


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    DONE = "done"


@frozen(kw_only=True)
class Usage:
    """What was counted by the model's own tokenizer.

    ``cached_tokens`` are those of the prompt that did not have to be computed again.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


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
class ChoiceFinished(Event):
    """One of the answers (``index``) of a request for several has ended; `Finished` follows the last."""

    reason: FinishReason = field(converter=FinishReason)
    completion_tokens: int = 0
    stop: str | int | None = None


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
    "ChoiceFinished",
    "Embeddings",
    "Event",
    "FinishReason",
    "Finished",
    "ImagePreview",
    "ImageReady",
    "Metrics",
    "Progress",
    "ReasoningDelta",
    "Scores",
    "TextDelta",
    "TextScore",
    "TokenLogprob",
    "ToolCall",
    "TopLogprob",
    "Usage",
]
