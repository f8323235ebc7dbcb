"""What a download says while it runs."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ..contract.events import Event


@frozen(kw_only=True)
class HubEvent(Event):
    """Base of every event of a download. Sizes are bytes, times seconds."""

    repo: str


@frozen(kw_only=True)
class Planned(HubEvent):
    """What will be done: ``need`` of ``total`` bytes, in ``files`` files, of the pinned ``commit``."""

    commit: str
    files: int
    total: int
    need: int


@frozen(kw_only=True)
class Resumed(HubEvent):
    """A file goes on where an earlier download stopped: ``at`` of ``size`` bytes were there."""

    file: str
    at: int
    size: int


@frozen(kw_only=True)
class Bytes(HubEvent):
    """Progress of the whole download; ``done`` never falls, and ends at ``total``."""

    done: int
    total: int


@frozen(kw_only=True)
class Retry(HubEvent):
    """A request failed and is made again after ``delay`` seconds, for the ``attempt``-th time in a row."""

    file: str
    reason: str
    delay: float
    attempt: int


@frozen(kw_only=True)
class Verifying(HubEvent):
    """A file that is already on the disk is being hashed."""

    file: str
    size: int


@frozen(kw_only=True)
class Corrupt(HubEvent):
    """A file's content was not what the hub says it is; it was thrown away."""

    file: str
    expected: str
    found: str


@frozen(kw_only=True)
class Ready(HubEvent):
    """Every file is there and verified; ``path`` is the folder that holds them."""

    path: Path


@frozen(kw_only=True)
class Failed(HubEvent):
    """The download ended with an error; what has arrived is kept."""

    error: str


__all__ = [
    "Bytes",
    "Corrupt",
    "Failed",
    "HubEvent",
    "Planned",
    "Ready",
    "Resumed",
    "Retry",
    "Verifying",
]
