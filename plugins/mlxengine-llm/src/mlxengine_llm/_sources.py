"""Where what goes with a model is found: an adapter, a draft model, another tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mlxengine.errors import ModelNotFoundError

T = TypeVar("T")


def adapter_folder(source: str, fetch: Callable[[str, Sequence[str]], T] | None) -> Path | T:
    """A local adapter's folder, or what ``fetch`` gives for one that is on the hub.

    Raises:
        ModelNotFoundError: there is no such folder, and nothing can be fetched.
    """
    from ._adapters import FILES as ADAPTER_FILES

    return local_folder(source, fetch, ADAPTER_FILES, "adapter")


def local_folder(
    source: str, fetch: Callable[[str, Sequence[str]], T] | None, files: Sequence[str], what: str
) -> Path | T:
    """A local folder, or what ``fetch`` gives for the ``files`` of a repository.

    Raises:
        ModelNotFoundError: there is no such folder, and nothing can be fetched.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    if fetch is None or source.startswith(("/", ".", "~")):
        raise ModelNotFoundError(f"There is no {what} folder {source}.")
    return fetch(source, files)


__all__ = ["adapter_folder", "local_folder"]
