"""What can be asked of a chain, and what only a chain says."""

from __future__ import annotations

from attrs import frozen
from mlxengine import Event, Request
from mlxengine.errors import InvalidParameterError


@frozen(kw_only=True)
class ContinueRequest(Request):
    """Continue a text.

    Args:
        text: what to continue; empty starts where the training text started.
        length: how many words (or characters) to add at most.
        seed: the same seed gives the same text; ``None`` draws one.
    """

    text: str = ""
    length: int = 20
    seed: int | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.length, int) or isinstance(self.length, bool) or self.length < 1:
            raise InvalidParameterError(f"length={self.length!r} must be a whole number from 1.")


@frozen(kw_only=True)
class Choice(Event):
    """What the chain chose, how probable it was, and how many successors there were to choose from."""

    text: str
    probability: float
    candidates: int
