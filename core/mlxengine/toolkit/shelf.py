"""Prefix caches on disk: they survive a restart, and are used only if nothing about them has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..contract.configuration import ModelCard
from .prefix import Entry

_log = logging.getLogger("mlxengine.toolkit.shelf")
_SMALLEST = 128
_SCRATCH = "writing-"
_FORGOTTEN = 600.0  # seconds after which whoever wrote there was killed


class DiskShelf:
    """A folder of safetensors files, each with a small JSON beside it that is written last.

    Args:
        folder: made when the first entry is written.
        identity: what the caches depend on (model commit, tokenizer, adapter, number format); entries
            of another identity are not seen.
        caches: makes the empty caches of a row, which what is read from a file is put into.
        budget: most bytes of files; the oldest go first.
    """

    def __init__(
        self, folder: Path, identity: str, caches: Callable[[], list[Any]], budget: int = 4 << 30
    ) -> None:
        self._folder = folder / hashlib.sha256(identity.encode()).hexdigest()[:24]
        self._caches = caches
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
                media = tuple(map(str, item["media"]))
                size = int(item["bytes"])
                found.append(Entry(tokens=tokens, layers=None, nbytes=size, name=path.stem, media=media))
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("A prompt cache on disk is damaged and is removed: %s", error)
                self._remove(path.stem)
        return found

    def save(self, entry: Entry) -> None:
        """Write an entry whole or not at all; a failure is logged, not raised."""
        if len(entry.tokens) < _SMALLEST:
            return
        content = entry.tokens.tobytes() + "".join(entry.media).encode()
        name = hashlib.sha256(content).hexdigest()[:24]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=_SCRATCH) as scratch:
                made = Path(scratch) / f"{name}.safetensors"
                arrays, others = _taken_apart(entry.layers or ())
                mx.save_safetensors(str(made), arrays)
                notes = {
                    "tokens": entry.tokens.tolist(),
                    "media": entry.media,
                    "others": others,
                    "bytes": made.stat().st_size,
                    "sha256": _digest(made),
                }
                written = Path(scratch) / f"{name}.json"
                written.write_text(json.dumps(notes), "utf-8")
                made.replace(self._folder / made.name)
                written.replace(self._folder / written.name)
            entry.name = name
            self._shrink()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            _log.warning("A prompt cache could not be written to %s: %s", self._folder, error)

    def load(self, entry: Entry) -> list[Any] | None:
        """The caches of an entry, or ``None`` if the file is damaged or gone; it is removed then."""
        assert entry.name is not None
        path = self._folder / f"{entry.name}.safetensors"
        try:
            notes = json.loads(path.with_suffix(".json").read_text("utf-8"))
            if _digest(path) != notes["sha256"]:
                raise ValueError("its content has changed")
            arrays: Any = mx.load(str(path))
            layers = _put_together(self._caches(), arrays, notes["others"])
            path.touch()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
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


def shelf_for(
    folder: object,
    card: ModelCard,
    *,
    network: Any,
    tokenizer: Any,
    caches: Callable[[], list[Any]],
    settings: Sequence[object],
) -> DiskShelf | None:
    """Where a model's prefix caches are kept on disk; ``None`` without a folder.

    Args:
        folder: a path, ``~`` allowed, or ``None``.
        card: the model's.
        network: an ``mlx.nn.Module``; the formats of its numbers make other caches.
        tokenizer: transformers'; another one makes other tokens.
        caches: makes the empty caches of a row.
        settings: whatever else the caches depend on: the library's version, bits.
    """
    if folder is None:
        return None
    parameters: Any = tree_flatten(network.parameters())
    formats = sorted({str(value.dtype) for _, value in parameters})
    words = getattr(tokenizer, "backend_tokenizer", None)
    spelled = hashlib.sha256((words.to_str() if words is not None else "").encode()).hexdigest()
    identity = (card.id, card.commit, formats, *settings, spelled)
    return DiskShelf(Path(str(folder)).expanduser(), repr(identity), caches)


def _taken_apart(layers: Sequence[Any]) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """The arrays of caches by their place, and all else that they hold."""
    tree = [[layer.state, getattr(layer, "meta_state", None)] for layer in layers]
    leaves: Any = tree_flatten(tree)
    arrays = {place: value for place, value in leaves if isinstance(value, mx.array)}
    return arrays, {place: value for place, value in leaves if place not in arrays}


def _put_together(layers: list[Any], arrays: dict[str, mx.array], others: dict[str, Any]) -> list[Any]:
    """Empty caches with that in them."""
    tree: Any = tree_unflatten([*arrays.items(), *others.items()])
    for layer, (state, meta) in zip(layers, tree, strict=True):
        layer.state = state
        if hasattr(layer, "meta_state"):
            layer.meta_state = meta
    return layers


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


__all__ = ["DiskShelf", "shelf_for"]
