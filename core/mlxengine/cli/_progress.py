"""Progress of downloads and loads, on stderr: one line that changes in a terminal, few lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

from .._shown import shown
from .._units import human
from ..contract.events import Event, Progress
from ._output import Output, tell

_EVERY = 0.1  # seconds between two changes of the line in a terminal
_RARELY = 5.0  # and between two lines elsewhere


class ProgressLine:
    """Shows the events that ``on_progress`` is called with. A context manager; safe on any thread."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._shown = ""
        self._stage = ""
        self._last = 0.0
        self._began = (0.0, 0.0)

    def __call__(self, event: Event) -> None:
        """Show an event; those that say nothing about progress are left out."""
        if self._out.quiet:
            return
        done, total = getattr(event, "done", None), getattr(event, "total", None)
        with self._lock:
            if isinstance(event, Progress):
                self._show(event.stage, event.done, event.total, event.unit)
            elif done is not None and total:
                self._show("download", float(done), float(total), "bytes")
            elif getattr(event, "delay", None) is not None:
                reason = getattr(event, "reason", "it failed")
                self._print_line(f"trying again in {getattr(event, 'delay', 0):.0f} s: {reason}")

    def _show(self, stage: str, done: float, total: float | None, unit: str) -> None:
        now = time.monotonic()
        fresh = stage != self._stage
        if fresh:
            self._stage, self._began = stage, (now, done)
        over = total is not None and done >= total
        if not fresh and not over and now - self._last < (_EVERY if self._live else _RARELY):
            return
        if not fresh and over and not self._live:
            self._stage = ""
        self._last = now
        text = self._text(stage, done, total, unit, now)
        if self._live:
            self._rewrite(text)
        elif text != self._shown:
            self._print_line(text)
            self._shown = text

    def _text(self, stage: str, done: float, total: float | None, unit: str, now: float) -> str:
        if not total:
            return f"{stage} …"
        share = min(1.0, done / total)
        if unit != "bytes":
            return f"{stage} {share:4.0%}"
        began, first = self._began
        rate = (done - first) / (now - began) if now - began > 0.5 else 0.0
        text = f"{stage} {share:4.0%} of {human(total)}"
        if rate > 0 and share < 1:
            left = (total - done) / rate
            text += f", {human(rate)}/s, {int(left // 60)}:{int(left % 60):02d} left"
        return text

    def _rewrite(self, text: str) -> None:
        self._shown = shown(text)[: self._out.width - 1]
        sys.stderr.write(f"\r\x1b[K{self._shown}")
        sys.stderr.flush()

    def _print_line(self, text: str) -> None:
        self._clear()
        tell(text)

    def _clear(self) -> None:
        if self._live and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._clear()


__all__ = ["ProgressLine"]
