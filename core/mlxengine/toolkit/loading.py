"""What loading a checkpoint has in common, whatever the model is; imports mlx only when weights are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._hub.headers import safetensors_tensors
from ..contract.configuration import ModelCard
from ..errors import IncompatibleWeightsError, LoadError, MLXEngineError, out_of_memory

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


@contextlib.contextmanager
def building(name: str) -> Iterator[None]:
    """What a library raises on a model's files becomes a typed error: it may be anything.

    Args:
        name: of the model, for the error.

    Raises:
        IncompatibleWeightsError: something that is no error of ours was raised within, an end of the program
            too, and memory was not the reason.
    """
    try:
        yield
    except (MLXEngineError, ImportError):
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        raise IncompatibleWeightsError(
            f"{name} cannot be built: {type(error).__name__}: {text[:300]}.",
            hint="Its configuration or its files are damaged, or made for another library.",
        ) from error


def check_safetensors(file: Path) -> None:
    """Compare a file's size and header with each other, without reading the tensors.

    Raises:
        CorruptFileError: the header cannot be read, or does not describe exactly this file.
    """
    with file.open("rb") as stream:

        def read(start: int, stop: int) -> bytes:
            stream.seek(start)
            return stream.read(stop - start)

        safetensors_tensors(read, file.stat().st_size, file.name)


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


def first_piece(network: Any, backend: str | None) -> int:
    """Tokens of the first piece of a prompt: on a CPU about a tenth of a second's at 15 GFLOP/s."""
    from mlx.utils import tree_flatten

    from .pace import Pace

    if backend != "cpu":
        return Pace.LARGEST
    numbers: int = sum(value.size for _, value in tree_flatten(network.parameters()))
    return max(Pace.SMALLEST, 750_000_000 // max(1, numbers))


def most_rows(backend: str | None) -> int:
    """Requests that a device decodes together at most, where nobody says otherwise."""
    return 32 if backend == "cpu" else 128


_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_COUNTS = ("max_new_tokens", "max_length")


def generation_defaults(card: ModelCard) -> dict[str, Any]:
    """A model's ``generation_config.json``, empty where it has none.

    Raises:
        LoadError: a value that requests go by is no number.
    """
    found = dict(card.documents.get("generation_config.json") or {})
    for name in (*_NUMBERS, *_COUNTS):
        value, kinds = found.get(name), int if name in _COUNTS else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise LoadError(
                f"{name} in generation_config.json of {card.id} is {str(value)[:60]!r}, which is no number.",
                hint="Compare it with that of the original repository.",
            )
    return found


__all__ = [
    "building",
    "check_safetensors",
    "descriptor_limit_kept",
    "first_piece",
    "generation_defaults",
    "most_rows",
    "warm",
]
