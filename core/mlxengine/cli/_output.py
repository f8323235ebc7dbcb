"""Where results, progress and errors go: results to stdout, everything else to stderr."""

from __future__ import annotations

import enum
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TextIO

import attrs

from .._shown import in_json, shown, spoken


def plain(value: Any) -> Any:
    """A value of ours as what JSON knows: attrs values become objects, paths and enums texts."""
    if attrs.has(type(value)):
        return {item.name: plain(getattr(value, item.name)) for item in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value) if isinstance(value, PurePath | BaseException) else repr(value)


class Output:
    """What a verb writes to."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self._at_line_start = True
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:  # a terminal that cannot show a character gets its escape
                reconfigure(errors="backslashreplace")

    def configure(self, *, json: bool, quiet: bool) -> None:
        """Set what the command line asked for."""
        self.json, self.quiet = json, quiet

    @property
    def interactive(self) -> bool:
        """Whether a person reads stdout."""
        return sys.stdout.isatty()

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 where there is none."""
        return shutil.get_terminal_size((80, 24)).columns

    def emit(self, value: object, text: Callable[[], None]) -> None:
        """The verb's result: ``value`` as JSON, or what ``text`` prints for people."""
        if self.json:
            self.value(value)
        else:
            text()

    def value(self, value: object) -> None:
        """One JSON value on a line of its own."""
        sys.stdout.write(in_json(json.dumps(plain(value), ensure_ascii=False)) + "\n")
        sys.stdout.flush()

    def line(self, text: str = "") -> None:
        """One line of the result; names in it cannot move the terminal."""
        self._put(f"{text if isinstance(text, _Bold) else shown(text)}\n")

    def write(self, text: str) -> None:
        """A piece of running text, shown at once."""
        self._put(spoken(text))

    def _put(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Begin a new line where the last one is not ended; stands where a person's ^C is echoed."""
        if not self._at_line_start and not self.json:
            self._put("\n")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Columns for people. In a terminal the widest columns give way to the width."""
        texts = [[_cell(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
        while self.interactive and sum(widths) + 2 * len(widths) > self.width and max(widths) > 8:
            excess = sum(widths) + 2 * len(widths) - self.width
            widest = widths.index(max(widths))
            widths[widest] = max(8, widths[widest] - excess)
        for number, cells in enumerate([list(headers), *texts]):
            shown = [_fit(cell, width) for cell, width in zip(cells, widths, strict=True)]
            line = "  ".join(f"{cell:<{width}}" for cell, width in zip(shown, widths, strict=True)).rstrip()
            self.line(self.bold(line) if number == 0 else line)

    def paragraph(self, text: str, indent: str = "", hang: str | None = None) -> None:
        """Text wrapped to the terminal's width; ``hang`` indents what follows the first line."""
        self.line(self.wrapped(text, indent, hang))

    def wrapped(self, text: str, indent: str = "", hang: str | None = None) -> str:
        """The same without printing it."""
        return textwrap.fill(
            shown(text),
            self.width - 1,
            initial_indent=indent,
            subsequent_indent=indent if hang is None else hang,
            break_on_hyphens=False,
        )

    def bold(self, text: str) -> str:
        """Text that stands out, where the terminal can and the user did not forbid it."""
        return _Bold(f"\x1b[1m{shown(text)}\x1b[0m") if colours(sys.stdout) else text

    def note(self, text: str) -> None:
        """A remark for people, on stderr; not with ``--quiet``."""
        if not self.quiet:
            tell(text)

    def fail(self, error: BaseException, code: int) -> int:
        """Say what went wrong, on stderr or as JSON, and return the exit code."""
        message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        hint = getattr(error, "hint", None)
        if code == 1:
            hint = (
                "This is not an error that mlxengine foresees: run with -vv for the traceback and report it."
            )
        if self.json:
            body = {
                "type": type(error).__name__,
                "message": message,
                "hint": hint,
                "recoverable": bool(getattr(error, "recoverable", False)),
                "exit_code": code,
            }
            self.value({"error": body})
            return code
        self.end_line()
        label = "\x1b[31merror:\x1b[0m" if colours(sys.stderr) else "error:"
        width = shutil.get_terminal_size((80, 24)).columns - 1
        lines = textwrap.wrap(shown(message), width, initial_indent="error: ", break_on_hyphens=False)
        text = "\n".join(lines).replace("error:", label, 1)
        if hint:
            text += "\n" + textwrap.fill(shown(hint), width, initial_indent="  ", subsequent_indent="  ")
        tell(_Bold(text))
        if logging.getLogger("mlxengine").isEnabledFor(logging.DEBUG):
            import traceback

            tell("".join(traceback.format_exception(error)).rstrip())
        return code

    def flush(self) -> None:
        """Write out what is buffered, so that a closed pipe is noticed here."""
        sys.stdout.flush()


class _Bold(str):
    """Text with sequences of our own for the terminal; what strangers wrote in it is escaped already."""

    __slots__ = ()


def _cell(value: object) -> str:
    return "–" if value is None else shown(str(value)).replace("\n", "\\n")


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def tell(text: str) -> None:
    """One line on stderr; names in it cannot move the terminal."""
    sys.stderr.write(f"{text if isinstance(text, _Bold) else shown(text)}\n")
    sys.stderr.flush()


def colours(stream: TextIO) -> bool:
    """Whether a stream shows colours: a terminal, and neither ``NO_COLOR`` nor a dumb one."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


__all__ = ["Output", "colours", "plain", "tell"]
