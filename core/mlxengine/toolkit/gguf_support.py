"""What of GGUF can be read, told from names and a file's directory; needs no mlx, so claims may ask it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..contract.configuration import TensorInfo
from ..errors import IncompatibleWeightsError, LoadError, UnsupportedArchitectureError
from .counts import config_problem
from .estimate import from_gguf

ARCHITECTURES = frozenset({"llama"})
TENSOR_TYPES = ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q8_0", "F16", "BF16", "F32")
"""Tensor types that are repacked without loss, smallest first."""

UNPACKED_TYPES = ("Q6_K", "Q3_K", "Q2_K")
"""Types that MLX has no form for: their numbers are kept in fp32, without loss."""

TOKENIZERS = frozenset({"gpt2"})
_READABLE = (*TENSOR_TYPES, *UNPACKED_TYPES)
_HINT = f"Use a file of the type {', '.join(_READABLE)}, or the model's MLX conversion."


def choose_file(names: Sequence[str]) -> str | None:
    """Which of a repository's GGUF files to load: the only one, else by the type in a name.

    The smallest that is repacked, else one that takes fp32.

    Repositories hold one model in many types and say which in each file's name.
    """
    if len(names) == 1:
        return names[0]
    for kind in _READABLE:
        for name in sorted(names):
            if kind in name.upper().replace("-", "_").replace(".", "_") and "-of-" not in name:
                return name
    return None


def gguf_problem(metadata: Mapping[str, Any], tensors: Sequence[TensorInfo], name: str) -> LoadError | None:
    """Why a GGUF file cannot be read, or ``None`` where nothing is known against it."""
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        return UnsupportedArchitectureError(
            f"{name} has the architecture {architecture!r}; GGUF files of {', '.join(sorted(ARCHITECTURES))} "
            "can be read.",
            hint="Use the model's MLX conversion.",
        )
    found = Counter(tensor.dtype for tensor in tensors if tensor.dtype not in _READABLE)
    if found:
        listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(found.items()))
        return IncompatibleWeightsError(
            f"{name} has tensors of types that cannot be read: {listed}.", hint=_HINT
        )
    tokenizer = metadata.get("tokenizer.ggml.model")
    if tokenizer not in TOKENIZERS:
        return UnsupportedArchitectureError(
            f"{name} has the tokenizer {tokenizer!r}; byte-level BPE ({', '.join(TOKENIZERS)}) can be read.",
            hint="Use the model's MLX conversion.",
        )
    return config_problem(name, from_gguf(metadata), tensors)


def no_readable_file(names: Sequence[str], name: str) -> LoadError:
    """The error for a repository none of whose GGUF files can be read."""
    return IncompatibleWeightsError(
        f"{name} holds {len(names)} GGUF files, none of a type that can be read ({', '.join(names[:5])}).",
        hint=_HINT,
    )


__all__ = [
    "ARCHITECTURES",
    "TENSOR_TYPES",
    "UNPACKED_TYPES",
    "choose_file",
    "gguf_problem",
    "no_readable_file",
]
