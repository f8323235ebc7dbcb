"""The files that parts are: JSON lines, or Parquet. Both are made of a part's journal, a JSON line a row."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxengine.errors import CorruptFileError, GenerationError, MLXEngineError

from ._sources import parquet

ROW, SOURCE, ERROR = "row", "source", "error"
_PREFIX = re.compile(rb'\{"row": (\d+), ')
_FAILED = re.compile(rb'\{"row": \d+, "source": "(?:[^"\\]|\\.)*", "error": \{')


def plain_json(values: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON in UTF-8."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # JSON has no NaN
        text = json.dumps(_finite(values), ensure_ascii=False, default=_plain)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return json.dumps(_finite(values), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return float(value) if isinstance(value, decimal.Decimal) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def number_of(line: bytes) -> int | None:
    """The number of a row's line; ``None`` for what is no whole line of a row."""
    found = _PREFIX.match(line)
    return None if found is None or not line.endswith(b"}\n") else int(found[1])


def arrow_types(results: Mapping[str, str]) -> dict[str, Any]:
    """The types that a task's columns have in Arrow."""
    import pyarrow

    kinds = {
        "text": pyarrow.string(),
        "picture": pyarrow.binary(),
        "number": pyarrow.float32(),
        "count": pyarrow.int64(),
        "numbers": pyarrow.list_(pyarrow.float32()),
    }
    return {name: kinds[what] for name, what in results.items()}


def error_value(error: MLXEngineError) -> dict[str, str | None]:
    """An error as it stands in a row."""
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


class Parts:
    """JSON lines: a part is its journal, in order.

    An error stands right behind the row's source, so that counting parses nothing.
    """

    ending = "jsonl"

    def path(self, folder: Path, part: int) -> Path:
        """Where a part is."""
        return folder / f"part-{part:05d}.{self.ending}"

    def present(self, folder: Path) -> set[int]:
        """The parts that are there."""
        return {int(item.stem.removeprefix("part-")) for item in folder.glob(f"part-*.{self.ending}")}

    def write(self, path: Path, lines: Sequence[bytes], folder: Path) -> None:
        """Write a part's rows; ``folder`` has the parts that are there already."""
        del folder
        with path.open("wb") as file:
            file.writelines(lines)

    def read(self, path: Path) -> Iterator[tuple[int, str | None]]:
        """Each row's number, and its error's message if it has one."""
        with path.open("rb") as lines:
            for line in lines:
                number = number_of(line)
                if number is None:
                    raise CorruptFileError(f"{path} holds what no job wrote: {line[:60]!r}.")
                failed = _FAILED.match(line) is not None
                yield number, json.loads(line)[ERROR]["message"] if failed else None


class ParquetParts(Parts):
    """Parquet, all parts of one schema: the types of columns that were kept are those of the first part.

    Args:
        results: what the task's columns hold.
    """

    ending = "parquet"

    def __init__(self, results: Mapping[str, str]) -> None:
        self._results = results
        self._module = parquet()
        self._schema: Any = None

    def write(self, path: Path, lines: Sequence[bytes], folder: Path) -> None:
        import pyarrow

        rows = [json.loads(line) for line in lines]
        try:
            if self._schema is None:
                self._schema = self._schema_of(rows, folder)
            table = pyarrow.Table.from_pylist(rows, schema=self._schema)
        except (pyarrow.ArrowException, ValueError, TypeError) as error:
            raise GenerationError(
                f"The rows {rows[0][ROW]} to {rows[-1][ROW]} do not have the columns' types: {error}.",
                hint="Write JSON lines (--format jsonl) into another folder, or keep fewer columns.",
            ) from error
        self._module.write_table(table, path)

    def _schema_of(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> Any:
        import pyarrow

        for part in sorted(self.present(folder)):
            return self._module.read_schema(self.path(folder, part))
        own = {
            ROW: pyarrow.int64(),
            SOURCE: pyarrow.string(),
            ERROR: pyarrow.struct([(name, pyarrow.string()) for name in ("type", "message", "hint")]),
        }
        kept = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in own and name not in self._results:
                kind = pyarrow.array([row.get(name) for row in rows]).type
                kept[name] = pyarrow.string() if pyarrow.types.is_null(kind) else kind
        named = {name: "text" if what == "picture" else what for name, what in self._results.items()}
        results = arrow_types(named)
        return pyarrow.schema([*own.items(), *kept.items(), *results.items()])

    def read(self, path: Path) -> Iterator[tuple[int, str | None]]:
        table = self._module.read_table(path, columns=[ROW, ERROR])
        for number, error in zip(table[ROW].to_pylist(), table[ERROR].to_pylist(), strict=True):
            yield number, None if error is None else error["message"]


__all__ = [
    "ERROR",
    "ROW",
    "SOURCE",
    "ParquetParts",
    "Parts",
    "arrow_types",
    "error_value",
    "number_of",
    "plain_json",
]
