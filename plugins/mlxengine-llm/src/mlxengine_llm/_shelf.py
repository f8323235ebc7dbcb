"""Prefix caches on disk: they survive a restart, and are used only if nothing about them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ._caches import plain
from ._prefix import Entry

_log = logging.getLogger("mlxengine.llm.prefix")
_SMALLEST = 128
_SCRATCH = "writing-"
_FORGOTTEN = 600.0  # seconds after which whoever wrote there was killed


class DiskShelf:
    """A folder of safetensors files, each with a small JSON beside it that is written last.

    Args:
        folder: made when the first entry is written.
        identity: what the caches depend on (model commit, tokenizer, adapter, number format); entries
            of another identity are not seen.
        budget: most bytes of files; the oldest go first.
    """

    def __init__(self, folder: Path, identity: str, budget: int = 4 << 30) -> None:
        self._folder = folder / hashlib.sha256(identity.encode()).hexdigest()[:24]
        self._budget = budget

    def entries(self) -> list[Entry]:
        """What is there, oldest first; nothing is read but the small files.

        What a process that was killed had half-written is removed.
        """
        for path in self._folder.glob(f"{_SCRATCH}*"):
            if time.time() - _age(path) > _FORGOTTEN:
                shutil.rmtree(path, ignore_errors=True)
        found = []
        for path in sorted(self._folder.glob("*.json"), key=_age):
            try:
                item = json.loads(path.read_text("utf-8"))
                tokens = np.asarray(item["tokens"], dtype=np.int64)
                found.append(Entry(tokens=tokens, layers=None, nbytes=int(item["bytes"]), name=path.stem))
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("A prompt cache on disk is damaged and is removed: %s", error)
                self._remove(path.stem)
        return found

    def save(self, entry: Entry) -> None:
        """Write an entry whole or not at all; a failure is logged, not raised."""
        from mlx_lm.models.cache import save_prompt_cache

        if len(entry.tokens) < _SMALLEST:
            return
        name = hashlib.sha256(entry.tokens.tobytes()).hexdigest()[:24]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=_SCRATCH) as scratch:
                made = Path(scratch) / f"{name}.safetensors"
                save_prompt_cache(str(made), [plain(layer) for layer in entry.layers or ()])
                notes = {
                    "tokens": entry.tokens.tolist(),
                    "bytes": made.stat().st_size,
                    "sha256": _digest(made),
                }
                written = Path(scratch) / f"{name}.json"
                written.write_text(json.dumps(notes), "utf-8")
                made.replace(self._folder / made.name)
                written.replace(self._folder / written.name)
            entry.name = name
            self._shrink()
        except (OSError, ValueError, RuntimeError) as error:
            _log.warning("A prompt cache could not be written to %s: %s", self._folder, error)

    def load(self, entry: Entry) -> list[Any] | None:
        """Read an entry, if its bytes are those that were written; else it is removed."""
        from mlx_lm.models.cache import load_prompt_cache

        assert entry.name is not None
        path = self._folder / f"{entry.name}.safetensors"
        try:
            notes = json.loads(path.with_suffix(".json").read_text("utf-8"))
            if _digest(path) != notes["sha256"]:
                raise ValueError("its content has changed")
            layers: list[Any] = load_prompt_cache(str(path))
            path.touch()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            _log.warning("The prompt cache %s is not used: %s", path, error)
            self._remove(entry.name)
            return None
        return layers

    def _remove(self, name: str) -> None:
        for suffix in (".json", ".safetensors"):
            with contextlib.suppress(OSError):
                self._folder.joinpath(f"{name}{suffix}").unlink()

    def _shrink(self) -> None:
        files = sorted(self._folder.glob("*.safetensors"), key=_age)
        excess = sum(path.stat().st_size for path in files) - self._budget
        for path in files:
            if excess <= 0:
                return
            excess -= path.stat().st_size
            self._remove(path.stem)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


__all__ = ["DiskShelf"]
