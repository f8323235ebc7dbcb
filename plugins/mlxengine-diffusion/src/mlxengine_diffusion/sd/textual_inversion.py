"""Words that textual inversion taught (Gal et al. 2022, arXiv:2208.01618): vectors in place of tokens.

Files are those of diffusers, one tensor named after the word, and of AUTOMATIC1111's web UI, named after the
word: ``emb_params``, or ``clip_l`` and ``clip_g`` for the two text encoders of Stable Diffusion XL.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from attrs import frozen
from mlxengine.errors import IncompatibleWeightsError, InvalidParameterError

from .weights import read_tensors

FIRST = 1 << 24
"""Ids from here on stand for vectors; no vocabulary is so large."""
_PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_UNNAMED = ("emb_params", *_PARTS)
_MOST_VECTORS = 75


@frozen(eq=False)
class Taught:
    """A word and what stands for it: vectors (number, width) for each text encoder."""

    word: str
    vectors: Mapping[str, mx.array]


def read_taught(path: Path, widths: Mapping[str, int]) -> Taught:
    """The word in a file, or in the one ``.safetensors`` file of a folder.

    Args:
        widths: of the model's text encoders, by part.

    Raises:
        IncompatibleWeightsError: it is no such file, or one for another model.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or files[0].suffix != ".safetensors":
        raise IncompatibleWeightsError(
            f"{path} is no textual inversion: one .safetensors file is.",
            hint="Of several files, name one.",
        )
    file = files[0]
    tensors = {name: value for name, value in read_tensors(files).items() if value.ndim in (1, 2)}
    if set(tensors) == set(_PARTS):
        vectors = {_PARTS[name]: value for name, value in tensors.items()}
    elif len(tensors) == 1:
        vectors = {"text_encoder": next(iter(tensors.values()))}
    else:
        raise IncompatibleWeightsError(
            f"{file.name} is no textual inversion: it holds {len(tensors)} tensors.",
            hint="An adapter (LoRA) goes to lora, or --lora.",
        )
    vectors = {part: value.reshape(-1, value.shape[-1]).astype(mx.float32) for part, value in vectors.items()}
    found = {part: value.shape[1] for part, value in vectors.items()}
    if found != dict(widths):
        raise IncompatibleWeightsError(
            f"{file.name} has vectors of width {_listed(found)}; the text encoders of this model take "
            f"{_listed(widths)}.",
            hint="It was made for another generation of Stable Diffusion.",
        )
    counts = {len(value) for value in vectors.values()}
    if len(counts) != 1 or not 1 <= max(counts) <= _MOST_VECTORS:
        raise IncompatibleWeightsError(f"{file.name} has {sorted(counts)} vectors; 1 to {_MOST_VECTORS} are.")
    named = next(iter(tensors))
    return Taught(file.stem if named in _UNNAMED else named, vectors)


def _listed(widths: Mapping[str, int]) -> str:
    return " and ".join(map(str, widths.values()))


class Lexicon:
    """The taught words of a request: their ids, which follow each other, and their vectors."""

    def __init__(self, taught: Sequence[Taught]) -> None:
        self._taught = taught
        self._ids: dict[str, range] = {}
        first = FIRST
        for item in taught:
            count = len(next(iter(item.vectors.values())))
            self._ids[item.word.lower()] = range(first, first + count)
            first += count
        words = sorted(map(re.escape, self._ids), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)({'|'.join(words)})(?!\w)", re.IGNORECASE) if words else None

    def check(self, texts: Sequence[str]) -> None:
        """Refuse a word that no text has.

        Raises:
            InvalidParameterError: one is in none of ``texts``.
        """
        found = {ids for text in texts for _, ids in self.split(text)}
        for item in self._taught:
            if self._ids[item.word.lower()] not in found:
                raise InvalidParameterError(
                    f"The prompt does not hold {item.word!r}, which a textual inversion taught.",
                    hint="Write that word where it belongs, or leave the textual inversion out.",
                )

    def split(self, text: str) -> list[tuple[str, range | None]]:
        """A text in pieces: words of its own, and taught ones with their ids."""
        if self._pattern is None:
            return [(text, None)]
        pieces = self._pattern.split(text)
        return [
            (piece, self._ids[piece.lower()] if place % 2 else None) for place, piece in enumerate(pieces)
        ]

    def vectors(self, part: str) -> mx.array | None:
        """All vectors for a text encoder, (number, width), in the order of their ids."""
        return mx.concatenate([item.vectors[part] for item in self._taught]) if self._taught else None


def shown(encoder: Any, ids: mx.array, vectors: mx.array) -> Any:
    """A view of a text encoder that embeds ``ids`` with ``vectors`` for those from `FIRST` on."""

    class Embedding(nn.Module):  # type: ignore[misc]
        def __call__(self, plain: mx.array) -> mx.array:
            rows = encoder.token_embedding(plain)
            own = vectors[mx.maximum(ids - FIRST, 0)].astype(rows.dtype)
            return mx.where((ids >= FIRST)[..., None], own, rows)

    view = copy.copy(encoder)
    view.token_embedding = Embedding()
    return view


__all__ = ["FIRST", "Lexicon", "Taught", "read_taught", "shown"]
