"""What can be asked of a chain, and what only a chain says."""

from __future__ import annotations

from attrs import field, frozen, validators
from mlxengine import Event, Request


@frozen(kw_only=True)
class ContinueRequest(Request):
    """Continue a text.

    Args:
        text: what to continue; empty starts where the training text started.
        length: how many words (or characters) to add at most.
        seed: the same seed gives the same text; ``None`` draws one.
    """

    text: str = ""
    length: int = field(default=20, validator=validators.ge(1))
    seed: int | None = None


@frozen(kw_only=True)
class Choice(Event):
    """What the chain chose, how probable it was, and how many successors there were to choose from."""

    text: str
    probability: float
    candidates: int
