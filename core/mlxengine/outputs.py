"""What models give besides plain text: reasoning, tool calls, probabilities, vectors, scores, pictures.

Apart from the other events because nothing of it is needed before a model runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from .events import Event, FinishReason
from .readonly import freeze

if TYPE_CHECKING:
    import numpy as np


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
class ToolResult(Event):
    """What a tool answered to the call ``id``, in a session that runs its tools; ``error``: it failed."""

    id: str
    name: str
    content: str
    error: bool = False


@frozen(kw_only=True)
class ChoiceFinished(Event):
    """One of the answers (``index``) of a request for several has ended; `Finished` follows the last."""

    reason: FinishReason = field(converter=FinishReason)
    completion_tokens: int = 0
    stop: str | int | None = None


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


__all__ = [
    "Array",
    "ChoiceFinished",
    "Embeddings",
    "ImagePreview",
    "ImageReady",
    "ReasoningDelta",
    "Scores",
    "TextScore",
    "TokenLogprob",
    "ToolCall",
    "ToolResult",
    "TopLogprob",
]
