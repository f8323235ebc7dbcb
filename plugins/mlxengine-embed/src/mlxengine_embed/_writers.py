"""Vectors into files, a row at a time; a file appears under its name only when it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mlxengine.contract.events import Array
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError

Writer = Callable[[Path, Iterator[Array], Iterator[str]], int]
_ROWS = 4096


def writer_for(path: Path | None) -> Writer | None:
    """The writer for a file's ending; ``None`` for no file.

    Raises:
        InvalidParameterError: the ending is not known, or the folder does not exist.
        FeatureUnavailableError: ``.parquet`` is wanted and pyarrow is not installed.
    """
    if path is None:
        return None
    writers = {".npy": _write_npy, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise InvalidParameterError(
            f"Vectors cannot be written to {path.name}.",
            hint=f"Use a name that ends in {', '.join(writers)}.",
        )
    if not path.absolute().parent.is_dir():
        raise InvalidParameterError(f"There is no folder {path.absolute().parent}.")
    if writer is _write_parquet:
        _pyarrow()
    return writer


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FeatureUnavailableError(
            "Parquet files need pyarrow, which is not installed.",
            hint='Install "mlxengine-embed[parquet]", or write .npy or .jsonl.',
        ) from error
    return pyarrow


def part_of(path: Path) -> Path:
    """Where a file is until it is complete."""
    return path.with_name(f"{path.name}.part")


def _write_npy(path: Path, vectors: Iterator[Array], texts: Iterator[str]) -> int:
    """The .npy format, version 1.0; its header has a fixed size, so that the count can be put in last."""
    part = part_of(path)
    count = 0
    with part.open("wb") as file:
        size, dtype = 0, "float32"
        _npy_header(file, 0, size, dtype)
        for vector, _ in zip(vectors, texts, strict=False):
            size, dtype = vector.shape[0], vector.dtype
            file.write(vector.data)
            count += 1
        file.seek(0)
        _npy_header(file, count, size, dtype)
    part.replace(path)
    return count


def _npy_header(file: Any, count: int, size: int, dtype: str) -> None:
    descriptor = np.dtype(dtype).newbyteorder("<").str
    text = f"{{'descr': '{descriptor}', 'fortran_order': False, 'shape': ({count}, {size}), }}"
    body = text.ljust(128 - 10 - 1).encode() + b"\n"
    file.write(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body)


def _write_jsonl(path: Path, vectors: Iterator[Array], texts: Iterator[str]) -> int:
    part = part_of(path)
    count = 0
    with part.open("w", encoding="utf-8") as file:
        for vector, text in zip(vectors, texts, strict=False):
            row = {"text": text, "vector": vector.numpy().tolist()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    part.replace(path)
    return count


def _write_parquet(path: Path, vectors: Iterator[Array], texts: Iterator[str]) -> int:
    pyarrow = _pyarrow()
    part = part_of(path)
    count = 0
    writer = None
    while rows := [vector.numpy() for vector in islice(vectors, _ROWS)]:
        matrix = np.stack(rows)
        flat = pyarrow.array(matrix.reshape(-1))
        column = pyarrow.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
        names = pyarrow.array(list(islice(texts, len(rows))), pyarrow.string())
        table = pyarrow.table({"text": names, "vector": column})
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(str(part), table.schema)
        writer.write_table(table)
        count += len(rows)
    if writer is None:
        raise InvalidParameterError("There is no text to write.")
    writer.close()
    part.replace(path)
    return count


__all__ = ["Writer", "part_of", "writer_for"]
