"""What the author of a plugin supplies to the conformance kit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attrs import field, frozen

from .._scheduling.channel import MOST_BYTES
from ..contract._convert import names
from ..contract.configuration import ModelConfiguration
from ..contract.requests import Request


def _examples(value: Iterable[Example]) -> tuple[Example, ...]:
    return tuple(value)


def _refused(value: Iterable[tuple[Request, type[Exception]]]) -> tuple[tuple[Request, type[Exception]], ...]:
    return tuple(value)


@frozen(kw_only=True)
class Example:
    """A request that the specimen serves, small and reproducible (with a seed, where it draws).

    Args:
        request: the request.
        text: what the text deltas must join to, where that is known.
        shows: capabilities of the model that this request could not be served without.
    """

    request: Request
    text: str | None = None
    shows: frozenset[str] = field(default=frozenset(), converter=names)


@frozen(kw_only=True)
class Specimen:
    """A small model that the plugin serves, and what to ask of it.

    Args:
        path: a folder or GGUF file; random weights will do, seconds to load.
        examples: at least two requests that differ; at least one of several steps.
        refused: requests that the model cannot serve, each with the error that says so.
        configuration: how to load it, where the path alone is not enough.
        slack_bytes: memory that may stay in use after the model is closed.
        tolerance: largest difference between the numbers of two equal runs (0 for exact; compiled
            kernels and batches of another size differ in the last bits).
        seconds: how long one call into the plugin, and one request, may take at most; what takes longer is
            given up, and so is what takes more than 100,000 steps.
        step_seconds: how long one step of a request, or one slice of `Loaded.warm`, may take (the quicker of
            two runs).
        event_bytes: how much one event may hold.
    """

    path: Path
    examples: tuple[Example, ...] = field(converter=_examples)
    refused: tuple[tuple[Request, type[Exception]], ...] = field(default=(), converter=_refused)
    configuration: ModelConfiguration | None = None
    slack_bytes: int = 1 << 20
    tolerance: float = 1e-4
    seconds: float = 60.0
    step_seconds: float = 1.0
    event_bytes: int = MOST_BYTES
