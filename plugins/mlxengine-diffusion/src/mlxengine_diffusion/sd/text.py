"""Prompts into what the UNet attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from attrs import frozen

from ..backends._work import PromptReport
from .prompts import Piece
from .textual_inversion import FIRST, Lexicon, shown

_MOST_CHUNKS = 16
_NO_WORDS = Lexicon(())


@frozen(eq=False)
class Conditioning:
    """What the UNet is told about a prompt.

    Args:
        context: states of the text encoders, (1, tokens, width).
        pooled: SDXL's summary of the prompt, (1, width); else ``None``.
    """

    context: mx.array
    pooled: mx.array | None = None

    def repeated(self, n: int) -> Conditioning:
        """The same for ``n`` pictures at once: each row ``n`` times in a row."""
        if n == 1:
            return self
        pooled = None if self.pooled is None else mx.repeat(self.pooled, n, axis=0)
        return Conditioning(mx.repeat(self.context, n, axis=0), pooled)

    def arrays(self) -> tuple[mx.array, ...]:
        """All of it, to be evaluated."""
        return (self.context,) if self.pooled is None else (self.context, self.pooled)


@frozen
class Chunk:
    """What one run of a text encoder reads: its tokens, without start and end, and their weights."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


class Tokenizer:
    """A CLIP tokenizer whose output is chunks of the encoder's full length."""

    def __init__(self, folder: Path, length: int, *, pad: int | None = None) -> None:
        # Imported here: transformers takes longer to import than a small model to load.
        from transformers import CLIPTokenizer

        self._tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.length = length
        self._pad: int = self._tokenizer.pad_token_id if pad is None else pad

    def chunks(self, parts: Sequence[Sequence[Piece]], lexicon: Lexicon = _NO_WORDS) -> list[Chunk]:
        """A prompt, each of its parts begun in a chunk of its own; at least one chunk, at most 16."""
        return self._all_chunks(parts, lexicon)[:_MOST_CHUNKS]

    def rows(self, chunks: Sequence[Chunk]) -> tuple[list[list[int]], list[list[float]]]:
        """Ids and weights of each chunk with its start and end, padded as the model was trained."""
        known = self._tokenizer
        ids, weights = [], []
        for chunk in chunks:
            row = [known.bos_token_id, *chunk.ids, known.eos_token_id]
            rest = self.length - len(row)
            ids.append(row + [self._pad] * rest)
            weights.append([1.0, *chunk.weights, 1.0] + [1.0] * rest)
        return ids, weights

    def report(self, parts: Sequence[Sequence[Piece]], lexicon: Lexicon = _NO_WORDS) -> PromptReport:
        """How many tokens are read (with each chunk's start and end), and which text is left out."""
        chunks = self._all_chunks(parts, lexicon)
        cut = [token for chunk in chunks[_MOST_CHUNKS:] for token in chunk.ids if token < FIRST]
        return PromptReport(
            tokens=sum(len(chunk.ids) + 2 for chunk in chunks[:_MOST_CHUNKS]),
            truncated=self._tokenizer.decode(cut).strip() if cut else "",
        )

    def _all_chunks(self, parts: Sequence[Sequence[Piece]], lexicon: Lexicon) -> list[Chunk]:
        room = self.length - 2
        found = []
        for pieces in parts:
            ids: list[int] = []
            weights: list[float] = []
            for piece in pieces:
                own: list[int] = []
                for text, taught in lexicon.split(piece.text):
                    own += taught or self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
                ids += own
                weights += [piece.weight] * len(own)
            found += [
                Chunk(tuple(ids[start : start + room]), tuple(weights[start : start + room]))
                for start in range(0, max(1, len(ids)), room)
            ]
        return found


def encode(
    encoder: Any,
    ids: list[list[int]],
    weights: list[list[float]],
    layer: int,
    *,
    normed: bool,
    vectors: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """States (1, chunks * tokens, width) of one text encoder, and the first chunk's pooled output (1, width).

    Args:
        layer: the layer whose states are taken, counted from the end; 1 is the last.
        normed: whether the encoder's last norm is applied to them. SDXL does without.
        vectors: of taught words, whose ids begin at `FIRST`.

    A token's states are multiplied by its weight, then a chunk's by what brings its mean back to what it
    was, as AUTOMATIC1111's web UI does.
    """
    told = mx.array(ids)
    if vectors is not None:
        encoder, told = shown(encoder, told, vectors), mx.where(told < FIRST, told, 0)
    output = encoder(told)
    states = output.hidden_states[-layer]
    if normed:
        states = output.last_hidden_state if layer == 1 else encoder.final_layer_norm(states)
    if any(weight != 1 for row in weights for weight in row):
        mean = states.mean(axis=(1, 2), keepdims=True)
        weighed = states * mx.array(weights)[..., None].astype(states.dtype)
        states = weighed * (mean / weighed.mean(axis=(1, 2), keepdims=True))
    return states.reshape(1, -1, states.shape[-1]), output.pooled_output[:1]


__all__ = ["Chunk", "Conditioning", "Tokenizer", "encode"]
