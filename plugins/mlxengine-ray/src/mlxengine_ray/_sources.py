"""The rows of a job: JSONL, CSV and Parquet files and folders of pictures, read one after the other.

Every row has a number that depends on the inputs alone, so an interrupted job knows which ones it has.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen
from mlxengine.errors import (
    CorruptFileError,
    FeatureUnavailableError,
    InvalidParameterError,
    MLXEngineError,
    ModelNotFoundError,
)

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
TABLES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
_PARQUET_ROWS = 256
_LARGEST_FIELD = 1 << 30  # csv's own bound of 128 KiB is less than many documents

Done = Callable[[int], bool]


@frozen(kw_only=True)
class Row:
    """One row of the inputs.

    Args:
        number: its place among all rows of the job, from 0.
        source: where it stands, for people: ``"texts.jsonl:18"``, ``"cats/1.png"``.
        values: its columns by name.
        error: why it cannot be read; there are no values then.
    """

    number: int
    source: str
    values: Mapping[str, Any] = field(factory=dict)
    error: MLXEngineError | None = None


@frozen(kw_only=True)
class Input:
    """A file of the job: its path, what errors call it, and its size in bytes."""

    path: Path
    name: str
    size: int

    @property
    def is_picture(self) -> bool:
        """Whether the file itself is a row."""
        return self.path.suffix.lower() in PICTURES


def find_inputs(given: Sequence[Path], out: Path | None = None) -> list[Input]:
    """The files that paths stand for, in an order that does not change.

    Of a folder these are its tables, or its pictures where it has no tables; sub-folders count, but not
    hidden ones, nor ``out``, where the job writes.

    Raises:
        ModelNotFoundError: a path does not exist.
        InvalidParameterError: a file's ending is not known, or a folder holds nothing that is.
    """
    found: list[Input] = []
    for path in given:
        if path.is_dir():
            inside = [item for item in sorted(path.rglob("*")) if _counts(item, path, out)]
            chosen = [item for item in inside if item.suffix.lower() in TABLES]
            chosen = chosen or [item for item in inside if item.suffix.lower() in PICTURES]
            if not chosen:
                raise InvalidParameterError(
                    f"There is no table and no picture in {path}.", hint=f"Known endings: {_known()}."
                )
            found += [_input(item, str(item.relative_to(path))) for item in chosen]
        elif not path.exists():
            raise ModelNotFoundError(f"There is no file or folder {path}.")
        elif path.suffix.lower() not in TABLES | PICTURES:
            raise InvalidParameterError(
                f"{path.name} is of no kind that a job can read.", hint=f"Known endings: {_known()}."
            )
        else:
            found.append(_input(path, path.name))
    return found


def _counts(item: Path, folder: Path, out: Path | None) -> bool:
    hidden = any(name.startswith(".") for name in item.relative_to(folder).parts)
    return item.is_file() and not hidden and not (out and item.resolve().is_relative_to(out.resolve()))


def _known() -> str:
    return ", ".join([*sorted(TABLES), *sorted(PICTURES)])


def _input(path: Path, name: str) -> Input:
    return Input(path=path.absolute(), name=name, size=path.stat().st_size)


def digest(inputs: Sequence[Input]) -> str:
    """What changes when a row may have got another number: names, sizes and times of the files."""
    told = hashlib.sha256()
    for item in inputs:
        told.update(
            f"{item.name}\0{item.size}\0{item.path.stat().st_mtime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return told.hexdigest()


class Reader:
    """Iterates over the rows of inputs; those that are done are counted and left out.

    Args:
        inputs: the files.
        wanted: the columns that are read of a Parquet file; others are left on the disk.
        picture: the column whose texts are paths of pictures, relative to their file's folder.
        done: whether a row is there already.

    ``count`` is how many rows were seen, ``position`` how many bytes lie behind them.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        *,
        wanted: frozenset[str],
        picture: str,
        done: Done = lambda _number: False,
    ) -> None:
        self._inputs = inputs
        self._wanted = wanted
        self._picture = picture
        self._done = done
        self.count = 0
        self.position = 0
        self.total = sum(item.size for item in inputs)

    def columns(self) -> dict[str, frozenset[str]]:
        """The columns of each CSV and Parquet file, which say them before their rows.

        Raises:
            InvalidParameterError: two columns have one name that is wanted.
        """
        found = {}
        for item in self._inputs:
            if item.path.suffix.lower() == ".parquet":
                with _opened(item) as file:
                    found[item.name] = self._names(item, file.schema_arrow.names)
            elif item.path.suffix.lower() in (".csv", ".tsv"):
                with self._text(item) as lines:
                    found[item.name] = self._names(item, _header(_csv_rows(item, lines)))
        return found

    def _names(self, item: Input, names: Sequence[str]) -> frozenset[str]:
        for name in sorted(self._wanted):
            if (count := names.count(name)) > 1:
                raise InvalidParameterError(
                    f"{item.name} has {count} columns that are called {name}.", hint="Rename all but one."
                )
        return frozenset(names)

    def __iter__(self) -> Iterator[Row]:
        before = 0
        for item in self._inputs:
            self.position = before
            ending = item.path.suffix.lower()
            if item.is_picture:
                yield from self._counted(item, iter([(item.name, {self._picture: item.path.name})]))
            elif ending == ".parquet":
                yield from self._parquet(item, before)
            elif ending in (".csv", ".tsv"):
                yield from self._csv(item, before)
            else:
                yield from self._jsonl(item)
            before += item.size
        self.position = before

    def _counted(self, item: Input, rows: Iterator[tuple[str, Any]]) -> Iterator[Row]:
        """Number rows; what is given is values, or a function that makes them, or an error."""
        for source, given in rows:
            number = self.count
            self.count += 1
            if self._done(number):
                continue
            values = given() if callable(given) else given
            if isinstance(values, MLXEngineError):
                yield Row(number=number, source=source, error=values)
            else:
                yield Row(number=number, source=source, values=self._located(item, values))

    def _located(self, item: Input, values: Mapping[str, Any]) -> Mapping[str, Any]:
        picture = values.get(self._picture)
        if isinstance(picture, Mapping) and "bytes" in picture:  # as the hub's data sets hold pictures
            return {**values, self._picture: picture["bytes"]}
        if not isinstance(picture, str) or ":" in picture.split("/")[0]:
            return values
        return {**values, self._picture: str(item.path.parent / picture)}

    def _jsonl(self, item: Input) -> Iterator[Row]:
        with item.path.open("rb") as lines:

            def read() -> Iterator[tuple[str, Any]]:
                for number, line in enumerate(lines, 1):
                    self.position += len(line)
                    text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    if text.strip():
                        source = f"{item.name}:{number}"
                        yield source, lambda text=text, source=source: _json_row(text, source)

            yield from self._counted(item, read())

    def _text(self, item: Input) -> Any:
        # what is no UTF-8 becomes a character that a request refuses: the row's error, not the job's
        return item.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _csv(self, item: Input, before: int) -> Iterator[Row]:
        with self._text(item) as lines:
            rows = _csv_rows(item, lines)
            header = _header(rows)

            def read() -> Iterator[tuple[str, Any]]:
                for number, row in enumerate(rows, 1):
                    self.position = before + lines.buffer.tell()
                    source = f"{item.name}:{number}"
                    if isinstance(row, MLXEngineError):
                        yield source, row
                    elif len(row) != len(header):
                        yield (
                            source,
                            InvalidParameterError(
                                f"Row {source} has {len(row)} fields, its header {len(header)}.",
                                hint="Quote fields that hold the separator.",
                            ),
                        )
                    else:
                        yield source, dict(zip(header, row, strict=True))

            yield from self._counted(item, read())

    def _parquet(self, item: Input, before: int) -> Iterator[Row]:
        with _opened(item) as file:
            columns = [name for name in file.schema_arrow.names if name in self._wanted]
            total = file.metadata.num_rows
            place = 0

            def read(group: int) -> Iterator[tuple[str, Any]]:
                nonlocal place
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns):
                    rows = batch.to_pylist() if columns else [{}] * batch.num_rows
                    for row in rows:
                        place += 1
                        self.position = before + item.size * place // total
                        yield f"{item.name}:{place}", row

            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if all(self._done(number) for number in range(self.count, self.count + size)):
                    self.count += size
                    place += size
                    continue
                yield from self._counted(item, read(group))


def parquet() -> Any:
    """pyarrow's module for Parquet.

    Raises:
        FeatureUnavailableError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise FeatureUnavailableError(
            "Parquet files need pyarrow, which is not installed.",
            hint='Install "mlxengine-ray[parquet]", or use JSONL.',
        ) from error
    return pyarrow.parquet


@contextmanager
def _opened(item: Input) -> Iterator[Any]:
    module = parquet()
    import pyarrow

    try:
        with module.ParquetFile(item.path) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise CorruptFileError(f"{item.name} is no whole Parquet file: {error}.") from error


def _json_row(line: bytes, source: str) -> Mapping[str, Any] | MLXEngineError:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InvalidParameterError(f"Line {source} is not JSON: {error}.")
    if isinstance(value, dict):
        return value
    return InvalidParameterError(
        f"Line {source} is a {type(value).__name__}, not an object.", hint='Write {"text": …}.'
    )


def _csv_rows(item: Input, lines: Any) -> Iterator[Any]:
    """The rows of a CSV file, its header first; an error stands for one that cannot be read."""
    csv.field_size_limit(_LARGEST_FIELD)
    rows = csv.reader(lines, delimiter="\t" if item.path.suffix.lower() == ".tsv" else ",")
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield InvalidParameterError(f"Line {rows.line_num} of {item.name} cannot be read: {error}.")
            continue
        if row:
            yield row


def _header(rows: Iterator[Any]) -> Sequence[str]:
    found = next(rows, ())
    if isinstance(found, MLXEngineError):
        raise found
    header: Sequence[str] = found
    return header


__all__ = ["PICTURES", "Input", "Reader", "Row", "digest", "find_inputs", "parquet"]
