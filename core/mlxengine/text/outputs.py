"""What language models give: text, reasoning, tool calls, probabilities."""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from ..contract.events import Event, FinishReason
from ..readonly import freeze


@frozen(kw_only=True)
class TopLogprob:
    """One alternative at a position: its token id, text and natural-log probability.

    ``bytes`` are what the token stands for, also where it is only a part of a character (``text`` shows
    U+FFFD there): those of an answer's tokens joined are its UTF-8, up to where a stop text cut it. ``None``
    where the tokenizer does not tell.
    """

    token_id: int
    text: str
    logprob: float
    bytes: builtins.bytes | None = None


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
class ToolCallDelta(Event):
    """A piece of a call that is being written: the first has the name and no arguments yet.

    The ``arguments`` of a call's deltas joined are the JSON text of those of its `ToolCall`, which follows
    when the call is whole. A call that cannot be read ends with a `ToolCall` that says so.
    """

    id: str
    name: str
    arguments: str = ""


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
class Prepared(Event):
    """A request as the model is given it: ``text`` as its chat template writes it, and all token ids.

    There are as many ids as the answer's usage will count for the prompt, those of pictures included.
    ``text`` is ``None`` where ids were given.
    """

    token_ids: tuple[int, ...]
    text: str | None = None


@frozen(kw_only=True)
class TextScore(Event):
    """Natural-log probability of each of ``token_ids``, given all before it.

    The very first token of a text has none, nor have those of its context. ``greedy``: each of them is the
    most probable one at its place. ``tokens`` tell more of each, if alternatives were asked for. ``index`` is
    the text's place among those of the request.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool = False
    tokens: tuple[TokenLogprob, ...] = ()

    @property
    def total(self) -> float:
        """The text's log-probability."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        return math.exp(-self.total / len(self.logprobs))


__all__ = [
    "ChoiceFinished",
    "Prepared",
    "ReasoningDelta",
    "TextDelta",
    "TextScore",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "TopLogprob",
]
