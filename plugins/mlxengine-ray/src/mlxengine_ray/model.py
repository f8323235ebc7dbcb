"""A model for rows, as frameworks for data want one: made once in each of their workers, then called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxengine import InferenceEngine
from mlxengine.errors import MLXEngineError, ModelClosedError

from ._outcomes import Outcome, Values
from ._parts import ERROR, arrow_types, error_value
from .tasks import Task


class BatchModel:
    """A model that does a task, row by row: an actor class for Ray Data's ``map_batches``, or on its own.

    A row that cannot be done has an error instead of results; it fails no other row. A context manager.

    Args:
        model: ``"org/name"``, a folder or a GGUF file.
        task: what to ask for each row.
        plugin: the plugin that must serve the model.
        features: feature flags of the engine.
        offline: make no request to the hub.

    Raises:
        MLXEngineError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        task: Task,
        *,
        plugin: str | None = None,
        features: Mapping[str, object] | None = None,
        offline: bool | None = None,
    ) -> None:
        self._task = task
        self._closed = False
        self._engine = InferenceEngine(features=features, offline=offline)
        try:
            self._handle = self._engine.load_as(task.handle, model, plugin=plugin)
        except BaseException:
            self._engine.close()
            raise
        self._threads = ThreadPoolExecutor(task.at_once, thread_name_prefix="mlxengine-batch")

    def outcomes(self, rows: Sequence[Values]) -> list[Outcome]:
        """The new columns of each row, or its error, in order.

        Raises:
            ModelClosedError: after ``close``.
            MLXEngineError: what no row is to blame for.
        """
        if self._closed:
            raise ModelClosedError("This BatchModel is closed: ask it before that, or make another.")
        size = self._task.unit
        units = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [item for found in self._threads.map(self._unit, units) for item in found]

    def _unit(self, rows: Sequence[Values]) -> list[Outcome]:
        return self._task.run(self._handle, rows)

    def rows(self, rows: Sequence[Values]) -> list[dict[str, Any]]:
        """The rows with the task's columns; where one has none, ``error`` says why (type, message, hint)."""
        empty = dict.fromkeys(self._task.results)
        return [
            {**row, **empty, ERROR: error_value(outcome)}
            if isinstance(outcome, MLXEngineError)
            else {**row, **empty, **outcome, ERROR: None}
            for row, outcome in zip(rows, self.outcomes(rows), strict=True)
        ]

    def __call__(self, batch: Any) -> Any:
        """A ``pyarrow.Table`` with the task's columns added, and ``error``, a JSON text or null.

        Columns of these names, which an earlier run has left, are replaced.
        """
        import pyarrow

        types = arrow_types(self._task.results)
        found = self.rows(batch.to_pylist())
        batch = batch.drop_columns([name for name in (*types, ERROR) if name in batch.column_names])
        for name, kind in types.items():
            batch = batch.append_column(name, pyarrow.array([row[name] for row in found], kind))
        errors = [None if row[ERROR] is None else json.dumps(row[ERROR]) for row in found]
        return batch.append_column(ERROR, pyarrow.array(errors, pyarrow.string()))

    def close(self) -> None:
        """Free the model."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["BatchModel"]
