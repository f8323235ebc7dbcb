"""A job from its inputs to its totals."""

from __future__ import annotations

import base64
import errno
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from mlxengine.errors import (
    GenerationError,
    InsufficientDiskError,
    InvalidParameterError,
    MLXEngineError,
)

from ._lanes import Lane, work
from ._outcomes import Outcome
from ._parts import ERROR, ROW, SOURCE, ParquetParts, Parts, error_value
from ._sources import Input, Reader, Row, digest, find_inputs
from ._store import Store, Totals
from .tasks import Task

FORMATS = ("jsonl", "parquet")
_VERSION = 1
_HOPELESS = 100  # rows of a run that fail before any succeeds: then it is not the rows


@frozen(kw_only=True)
class Job:
    """What is to be done, all of it.

    Args:
        inputs: files, in order.
        out: the folder of the results.
        model: what the results are made with, as the manifest says it.
        task: what is asked for each row.
        keep: columns of the inputs that the results have too.
        format: ``"jsonl"`` or ``"parquet"``.
        part_rows: rows of a part.
    """

    inputs: Sequence[Input]
    out: Path
    model: Mapping[str, Any]
    task: Task
    keep: tuple[str, ...] = ()
    format: str = "jsonl"
    part_rows: int = 1000

    @classmethod
    def of(cls, paths: Sequence[Path], out: Path, task: Task, **rest: Any) -> Job:
        """A job over paths, checked as far as it can be before anything is loaded.

        Raises:
            InvalidParameterError: a table lacks a column, or a name is taken.
            ModelNotFoundError: a path does not exist.
            FeatureUnavailableError: Parquet is wanted, and pyarrow is not installed.
        """
        job = cls(inputs=find_inputs(paths, out), out=out, task=task, **rest)
        taken = {ROW, SOURCE, ERROR, *task.results}.intersection(job.keep)
        if taken:
            raise InvalidParameterError(
                f"The results have columns of their own that are called {', '.join(sorted(taken))}.",
                hint="Keep other columns: every row names its source.",
            )
        for name, columns in job._reader().columns().items():
            if not columns:
                raise InvalidParameterError(
                    f"{name} has no columns: it is empty.", hint="Leave it out, or give it a first line."
                )
            if missing := (task.needs | set(job.keep)) - columns:
                raise InvalidParameterError(
                    f"{name} has no column {_listed(missing)}; it has {_listed(columns)}.",
                    hint="Name the column with --field.",
                )
        return job

    @property
    def manifest(self) -> dict[str, Any]:
        """What may not differ from one run of the job to the next."""
        return {
            "version": _VERSION,
            "inputs": {"files": len(self.inputs), "digest": digest(self.inputs)},
            "model": dict(self.model),
            "task": self.task.name,
            "options": asdict(self.task),
            "keep": list(self.keep),
            "format": self.format,
            "part_rows": self.part_rows,
        }

    def _reader(self, done: Callable[[int], bool] = lambda _number: False) -> Reader:
        wanted = self.task.reads | set(self.keep)
        return Reader(self.inputs, wanted=wanted, picture=self.task.picture, done=done)

    def store(self) -> Store:
        """Where its results go."""
        parts = ParquetParts(self.task.results) if self.format == "parquet" else Parts()
        return Store(self.out, self.manifest, parts, self.part_rows)

    def run(
        self, store: Store, lanes: Callable[[], Sequence[Lane]], progress: Callable[[int, int], None]
    ) -> Totals:
        """Do what of the job is not done yet.

        Args:
            store: the job's own, entered.
            lanes: makes the lanes, once there is a row for them.
            progress: told how many bytes of the inputs are behind, of how many.

        Raises:
            MLXEngineError: the job cannot go on, or a row was lost.
        """
        reader = self._reader(store.has)
        rows = iter(reader)
        try:
            first = next(rows, None)
            if first is not None:
                hopeless: float = 0
                for outcomes in work(chain([first], rows), lanes(), self.task.unit):
                    store.add((row.number, self._values(row, outcome)) for row, outcome in outcomes)
                    progress(reader.position, reader.total)
                    errors = [outcome for _, outcome in outcomes if isinstance(outcome, MLXEngineError)]
                    hopeless += len(errors) if len(errors) == len(outcomes) else -math.inf
                    if hopeless >= _HOPELESS:
                        raise GenerationError(
                            f"The first {hopeless} rows all ended with an error; the last one: {errors[-1]}",
                            hint=f"Mend the options and delete {self.out}; or run it again: it goes on.",
                        )
            return store.finish(reader.count)
        except OSError as error:
            kind = InsufficientDiskError if error.errno == errno.ENOSPC else GenerationError
            raise kind(
                f"The job stopped: {error}.", hint="Mend it and run the job again: it goes on where it was."
            ) from error

    def _values(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        kept = {name: _kept(row.values.get(name)) for name in self.keep}
        if isinstance(outcome, MLXEngineError):
            return {SOURCE: row.source, ERROR: error_value(outcome), **kept}
        return {SOURCE: row.source, **kept, **outcome}


def _kept(value: Any) -> Any:
    # bytes that a task made are a picture, those of an input anything
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


__all__ = ["FORMATS", "Job"]
