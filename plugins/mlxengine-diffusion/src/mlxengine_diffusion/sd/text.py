"""Prompts into what the UNet attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from attrs import frozen

from ..backends._work import PromptReport


@frozen(eq=False)
class Conditioning:
    """What the UNet is told about a prompt.

    Args:
        context: states of the text encoders, (1, tokens, width).
        pooled: SDXL's summary of the prompt, (1, width); else ``None``.
    """

    context: mx.array
    pooled: mx.array | None = None

    def arrays(self) -> tuple[mx.array, ...]:
        """All of it, to be evaluated."""
        return (self.context,) if self.pooled is None else (self.context, self.pooled)


class Tokenizer:
    """A CLIP tokenizer whose output always has the encoder's full length."""

    def __init__(self, folder: Path, length: int) -> None:
        # Imported here: transformers takes longer to import than a small model to load.
        from transformers import CLIPTokenizer

        self._tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.length = length

    def ids(self, text: str) -> list[int]:
        """Token ids, cut and padded to ``length`` as the model was trained."""
        return list(
            self._tokenizer(text, padding="max_length", max_length=self.length, truncation=True).input_ids
        )

    def report(self, text: str) -> PromptReport:
        """How many tokens the text has (with start and end), and which part of it does not fit."""
        ids = list(self._tokenizer(text, verbose=False).input_ids)
        cut = ids[self.length - 1 : -1] if len(ids) > self.length else []
        return PromptReport(
            tokens=min(len(ids), self.length), truncated=self._tokenizer.decode(cut).strip() if cut else ""
        )


def encode(encoder: Any, ids: list[int], *, penultimate: bool) -> tuple[mx.array, mx.array]:
    """States (1, tokens, width) and pooled output (1, width) of one text encoder.

    ``penultimate`` takes the states before the last layer, without the final norm, as SDXL does.
    """
    output = encoder(mx.array([ids]))
    states = output.hidden_states[-2] if penultimate else output.last_hidden_state
    return states, output.pooled_output


__all__ = ["Conditioning", "Tokenizer", "encode"]
