"""What loading a checkpoint has in common, whatever the model is; imports mlx only when weights are read."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError

_SLICE = 32 << 20


@contextlib.contextmanager
def descriptor_limit_kept() -> Iterator[None]:
    """Keep the limit of open files: mlx-lm sets it when it is imported, also to fewer than there were."""
    try:
        import resource
    except ImportError:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if (soft, hard) != before:
            # An unprivileged process cannot raise a hard limit again: keep as much as is allowed.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], hard), hard))
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, before)


def check_safetensors(file: Path) -> None:
    """Compare a file's size with what its header says, without reading the tensors.

    Raises:
        CorruptFileError: the header cannot be read, or the file is shorter or longer than it says.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        ends = [item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise CorruptFileError(
            f"{file.name} is not a safetensors file: {error}.", hint="Fetch the model again."
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CorruptFileError(
            f"{file.name} has {size} bytes, its header says {expected}.", hint="Fetch the model again."
        )


def warm(network: Any) -> Iterator[None]:
    """Evaluate a module's parameters, about 32 MiB at a time."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    piece: list[Any] = []
    size = 0
    for _, value in tree_flatten(network.parameters()):
        piece.append(value)
        size += value.nbytes
        if size >= _SLICE:
            mx.eval(piece)
            piece, size = [], 0
            yield
    mx.eval(piece)


__all__ = ["check_safetensors", "descriptor_limit_kept", "warm"]
