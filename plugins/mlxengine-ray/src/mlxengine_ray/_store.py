"""What a job writes: a folder of parts, of which each is there whole or not at all.

::

    OUT/_manifest.json           what the job is; another job into the same folder is refused
    OUT/part-00000.jsonl         the rows 0 to SIZE - 1, in order; further parts likewise
    OUT/pictures/00000/…         pictures that rows name
    OUT/.journal/00001.jsonl     rows of a part that is not whole yet, one line each, as they came

A part appears by one rename, when its journal has every row of it. A process that is killed leaves a journal
whose last line may be torn; the next one goes on behind the last whole line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from attrs import field, frozen
from mlxengine.errors import CorruptFileError, GenerationError, InvalidParameterError

from ._parts import Parts, number_of, plain_json

MANIFEST = "_manifest.json"
_JOURNAL = ".journal"


@frozen(kw_only=True)
class Totals:
    """What a finished job has: rows, how many of them are errors, parts, and the first error's message."""

    rows: int
    errors: int
    parts: int
    first_error: str | None = field(default=None)


class Store:
    """The folder of one job, held by one process at a time. A context manager.

    Args:
        folder: where; it is made if it is not there.
        job: what the job is, as JSON values.
        parts: how parts are written and read.
        size: rows of a part.

    ``added`` is how many rows this process has added.

    Raises:
        InvalidParameterError: the folder belongs to another job or none, or another process writes to it.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], parts: Parts, size: int) -> None:
        self._folder = folder
        self._job = json.loads(json.dumps(job))
        self._parts = parts
        self._size = size
        self._whole: set[int] = set()
        self._begun: dict[int, set[int]] = {}
        self._files: dict[int, int] = {}
        self._lock: int | None = None
        self.added = 0

    def __enter__(self) -> Self:
        self._claim()
        try:
            self._recover()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    # -- whose folder it is --------------------------------------------------------------------------

    def _claim(self) -> None:
        found = self._manifest()
        if (
            found is None
            and self._folder.exists()
            and (not self._folder.is_dir() or any(item.name[0] != "." for item in self._folder.iterdir()))
        ):
            raise InvalidParameterError(
                f"{self._folder} is there already and no job's.", hint="Name a folder that is new or empty."
            )
        self._refuse_another(found)
        journal = self._folder / _JOURNAL
        try:
            journal.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(journal / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InvalidParameterError(
                f"{self._folder} cannot be made or written to: {error.strerror}.",
                hint="Name a folder that you may write to.",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._release()
            raise InvalidParameterError(
                f"Another process is writing to {self._folder}.", hint="Wait for it, or end it first."
            ) from error
        try:
            found = self._manifest()  # as it is now that nobody else writes
            self._refuse_another(found)
        except BaseException:
            self._release()
            raise
        if found != self._job:
            replace(self._folder / MANIFEST, json.dumps({"job": self._job}, indent=1).encode())

    def _refuse_another(self, found: Mapping[str, Any] | None) -> None:
        """Refuse another job's folder, unless that job ended before its first row: a mistyped one, say."""
        if found is None or found == self._job:
            return
        journals = (self._folder / _JOURNAL).glob("*.jsonl")
        if any(self._folder.glob("part-*")) or any(path.stat().st_size for path in journals):
            differ = ", ".join(key for key in {**self._job, **found} if self._job.get(key) != found.get(key))
            raise InvalidParameterError(
                f"{self._folder} belongs to another job: {differ} differ.",
                hint="Name another folder, or delete this one to do its job anew.",
            )

    def _manifest(self) -> dict[str, Any] | None:
        try:
            told = json.loads((self._folder / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{self._folder / MANIFEST} cannot be read: {error}.") from error
        job: dict[str, Any] = told.get("job", {}) if isinstance(told, dict) else {}
        return job

    def _release(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- what is there -------------------------------------------------------------------------------

    def _recover(self) -> None:
        self._whole = self._parts.present(self._folder)
        for path in sorted((self._folder / _JOURNAL).iterdir()):
            if path.name == "lock":
                continue
            if path.suffix != ".jsonl" or int(path.stem) in self._whole:
                path.unlink()  # a part that was being written, or one that is whole
                continue
            self._begun[int(path.stem)] = set(_whole_lines(path))

    def has(self, number: int) -> bool:
        """Whether a row is there."""
        part = number // self._size
        return part in self._whole or number in self._begun.get(part, ())

    @property
    def begun(self) -> bool:
        """Whether there is a row."""
        return bool(self._whole or self._begun)

    # -- writing -------------------------------------------------------------------------------------

    def add(self, rows: Iterator[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep rows: what this has returned from survives the end of the process."""
        lines: dict[int, list[bytes]] = {}
        for number, values in rows:
            self.added += 1
            part = number // self._size
            line = plain_json({"row": number, **self._with_pictures(number, values)})
            lines.setdefault(part, []).append(line + b"\n")
            self._begun.setdefault(part, set()).add(number)
        for part, some in lines.items():
            if part not in self._files:
                path = self._folder / _JOURNAL / f"{part:05d}.jsonl"
                self._files[part] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            _write(self._files[part], b"".join(some))
            if len(self._begun[part]) == self._size:
                self._close(part, self._size)

    def _with_pictures(self, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        named = {}
        for name, value in values.items():
            if isinstance(value, bytes):
                path = Path("pictures") / f"{number // self._size:05d}" / f"{number:08d}.png"
                (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
                replace(self._folder / path, value)
                named[name] = path.as_posix()
        return {**values, **named}

    def _close(self, part: int, size: int) -> None:
        """Make a part of its journal."""
        file = self._files.pop(part, None)
        if file is not None:
            os.close(file)
        journal = self._folder / _JOURNAL / f"{part:05d}.jsonl"
        first = part * self._size
        lines = _whole_lines(journal)
        if set(lines) != set(range(first, first + size)):
            raise GenerationError(
                f"The rows {first} to {first + size - 1} are not whole: {len(lines)} of {size} are there.",
                hint="Run the job again: it does what is missing.",
            )
        target = self._parts.path(self._folder, part)
        temporary = journal.with_suffix(".part")
        self._parts.write(temporary, [lines[number] for number in sorted(lines)], self._folder)
        _sync(temporary)
        temporary.replace(target)
        _sync(self._folder)
        journal.unlink()
        self._whole.add(part)
        del self._begun[part]

    def finish(self, count: int) -> Totals:
        """Close the last part and count what is on the disk: every row is there once, in order.

        Args:
            count: how many rows the inputs have.

        Raises:
            GenerationError: rows are missing, or there are too many.
        """
        for part in sorted(self._begun):
            self._close(part, min(self._size, count - part * self._size))
        rows = errors = 0
        first_error = None
        for part in range(len(self._whole)):
            for number, error in self._parts.read(self._parts.path(self._folder, part)):
                if number != rows:
                    raise GenerationError(
                        f"Row {rows} is missing in {self._folder}; {number} is there in its place.",
                        hint="Something else changed the folder: name another one.",
                    )
                rows += 1
                if error is not None:
                    errors += 1
                    first_error = first_error or error
        if rows != count:
            raise GenerationError(
                f"The inputs have {count} rows, and {rows} came out.",
                hint="Run the job again into a new folder.",
            )
        return Totals(rows=rows, errors=errors, parts=len(self._whole), first_error=first_error)


def _whole_lines(path: Path) -> dict[int, bytes]:
    """The lines of a journal by row; what stands behind the last whole line is cut off."""
    lines: dict[int, bytes] = {}
    end = 0
    with path.open("rb") as journal:
        for line in journal:
            number = number_of(line)
            if number is None:
                break
            lines[number] = line
            end += len(line)
    os.truncate(path, end)
    return lines


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def replace(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


__all__ = ["Store", "Totals"]
