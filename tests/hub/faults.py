"""What goes wrong on the way, and the log of what was really sent.

A fault is a rule: which requests it hits (``match``, ``method``, ``range``), which of those (``skip``,
``times``), and what happens (``kind`` with its parameters). All rules that hit a request act on it together.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

KINDS = frozenset(
    {
        "status",  # answer `status` (with `headers`) instead
        "reset",  # RST after `after` bytes of the body
        "reset_early",  # RST instead of an answer
        "truncate",  # orderly end of the connection after `after` bytes of the body
        "stall",  # nothing more after `after` bytes, for `seconds` (None: until the client gives up)
        "delay",  # `seconds` before the answer
        "slow",  # at most `rate` bytes a second
        "drip",  # one byte each `seconds`, of the headers or the body (`part`), from `after` bytes on
        "corrupt",  # the byte at `offset` of the file (negative: from its end) is xored with `mask`
        "ignore_range",  # 200 and the whole file, whatever was asked
        "wrong_range",  # 206 that begins `shift` bytes later than asked, and says so
        "short_length",  # the last `cut` bytes are missing, and Content-Length agrees
        "oversize",  # `extra` more bytes than the file has, and Content-Length agrees
        "replace",  # answer with `body` instead
        "drop_header",  # without `header`
        "set_header",  # with `header: value`
    }
)


@dataclass
class Fault:
    """One rule. ``match`` is a regular expression that is searched in the path with its query.

    ``times=None`` acts for ever; ``range=True`` (``False``) hits only requests with (without) a Range header;
    ``server`` is ``"hub"``, ``"cdn"`` or ``None`` for both.
    """

    kind: str
    match: str = ""
    method: str | None = None
    times: int | None = 1
    skip: int = 0
    range: bool | None = None
    server: str | None = None
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    seconds: float | None = None
    rate: float = 1 << 20
    part: str = "body"
    offset: int = 0
    mask: int = 1
    shift: int = 1
    cut: int = 1
    extra: int = 1
    body: bytes = b""
    header: str = ""
    value: str = ""
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no fault: {', '.join(sorted(KINDS))}")

    def hit(self, method: str, path: str, ranged: bool, server: str) -> bool:
        """Whether this request is hit; counts it."""
        if self.method not in (None, method) or self.server not in (None, server):
            return False
        if self.range not in (None, ranged) or not re.search(self.match, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


class Faults:
    """The rules in force; safe to use from several threads."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, kind: str, match: str = "", **settings: Any) -> Fault:
        fault = Fault(kind, match, **settings)
        with self._lock:
            self._rules.append(fault)
        return fault

    def replace(self, rules: Iterable[dict[str, Any]]) -> None:
        faults = [Fault(**rule) for rule in rules]
        with self._lock:
            self._rules = faults

    def clear(self) -> None:
        self.replace(())

    def of(self, method: str, path: str, ranged: bool, server: str) -> dict[str, Fault]:
        """The faults that hit this request, by kind (the first of each kind)."""
        with self._lock:
            found: dict[str, Fault] = {}
            for rule in self._rules:
                if rule.kind not in found and rule.hit(method, path, ranged, server):
                    found[rule.kind] = rule
            return found


@dataclass
class LogEntry:
    """One request: what was asked, what was answered, and how many body bytes were handed to the socket."""

    method: str
    path: str
    server: str
    range: str | None = None
    authorization: str | None = None
    user_agent: str = ""
    status: int = 0
    bytes: int = 0
    end: str = "open"
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    faults: tuple[str, ...] = ()


class RequestLog:
    """Every request since the last ``clear``."""

    def __init__(self) -> None:
        self._entries: list[LogEntry] = []
        self._lock = threading.Lock()

    def add(self, entry: LogEntry) -> None:
        with self._lock:
            self._entries.append(entry)

    def clear(self) -> None:
        with self._lock:
            self._entries = []

    def entries(
        self, match: str = "", *, method: str | None = None, server: str | None = None
    ) -> list[LogEntry]:
        """The requests whose path (with its query) the regular expression is found in."""
        with self._lock:
            return [
                entry
                for entry in self._entries
                if re.search(match, entry.path)
                and method in (None, entry.method)
                and server in (None, entry.server)
            ]

    def bytes(self, match: str = r"/resolve/|/cdn/") -> int:
        """Body bytes sent for these requests; by default those of all files."""
        return sum(entry.bytes for entry in self.entries(match))

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.entries()]
