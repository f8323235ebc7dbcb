"""What loading was predicted to take and what it took, kept for `mlxengine fit --history`."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import NOTHING, asdict, fields, frozen

log = logging.getLogger("mlxengine.memory")
VARIABLE = "MLXENGINE_HISTORY"
_MOST_BYTES = 1 << 20


@frozen(kw_only=True)
class LoadRecord:
    """One load: bytes that the weights were predicted to take, did take, and the most held meanwhile.

    ``peak`` is above what was held before. ``predicted_cache`` and ``cache`` are bytes of the caches of a
    usual request, the second as the plugin measured it. ``when`` is a Unix time in seconds.
    """

    model: str
    kind: str
    backend: str
    predicted: int
    weights: int
    peak: int
    when: float
    predicted_cache: int = 0
    cache: int | None = None

    @property
    def error(self) -> float:
        """Predicted against measured weights: 0.1 is ten percent too much."""
        return self.predicted / self.weights - 1 if self.weights else 0.0


def default_path() -> Path:
    """``MLXENGINE_HISTORY``, else a file in the user's state folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path("~/.local/state").expanduser()) / "mlxengine" / "loads.jsonl"


def record(
    model: str,
    kind: str,
    backend: str,
    *,
    predicted: int,
    weights: int,
    peak: int,
    predicted_cache: int = 0,
    cache: int | None = None,
) -> None:
    """Append a load; a file that cannot be written is logged and forgotten."""
    entry = LoadRecord(
        model=model,
        kind=kind,
        backend=backend,
        predicted=predicted,
        weights=weights,
        peak=peak,
        when=time.time(),
        predicted_cache=predicted_cache,
        cache=cache,
    )
    path = default_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _MOST_BYTES:
            path.replace(path.with_suffix(".old.jsonl"))
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(entry)) + "\n")
    except OSError as error:
        log.debug("The load history cannot be written: %s", error)


def read(path: Path | None = None) -> Iterator[LoadRecord]:
    """The loads on record, oldest first; lines that cannot be read are passed over."""
    names = {item.name for item in fields(LoadRecord)}
    needed = {item.name for item in fields(LoadRecord) if item.default is NOTHING}
    try:
        lines = (path or default_path()).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and needed <= set(found) <= names:
            yield LoadRecord(**found)
