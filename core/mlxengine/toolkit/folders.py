"""Where what goes with a model is found: an adapter, a draft model, another tokenizer. Imports no mlx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import ModelNotFoundError

T = TypeVar("T")

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors", "adapter_model.safetensors")
"""The files of an adapter, in mlx-lm's and in PEFT's format."""


def adapter_folder(source: str, fetch: Callable[[str, Sequence[str]], T] | None) -> Path | T:
    """A local adapter's folder, or what ``fetch`` gives for one that is on the hub.

    Raises:
        ModelNotFoundError: there is no such folder, and nothing can be fetched.
    """
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


__all__ = ["ADAPTER_FILES", "adapter_folder", "local_folder"]
