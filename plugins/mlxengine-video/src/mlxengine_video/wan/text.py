"""Prompts, as Wan's UMT5 was told them in training."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import ftfy
import mlx.core as mx
from attrs import frozen
from mlxengine.errors import IncompatibleWeightsError

LENGTH = 512
"""Tokens of a prompt that are read."""


@frozen(kw_only=True, eq=False)
class Told:
    """What the transformer is told.

    Args:
        prompt, negative: the encoder's states (tokens, width), evaluated.
        tokens: of the prompt, as many as are read.
        truncated: the text of the prompt beyond them.
    """

    prompt: mx.array
    negative: mx.array
    tokens: int
    truncated: str


class Reader:
    """A tokenizer, and how an encoder is told what it makes of a text."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise IncompatibleWeightsError(
                f"The tokenizer in {folder.name} cannot be read: {error}.",
                hint="Verify the repository's files.",
            ) from error
        self._specials = len(self._tokenizer("").input_ids)

    def read(self, encoder: Any, prompt: str, negative: str | None) -> Told:
        """Encode a prompt and what to keep away from; ``None`` is the empty text."""
        ids, cut = self._ids(prompt)
        # Without padding: what is padded is masked, and positions are relative.
        both = ids, self._ids(negative or "")[0]
        size = encoder.token_embedding.weight.shape[0]
        if max(*both[0], *both[1]) >= size:  # mlx would read behind the table
            raise IncompatibleWeightsError(
                f"The tokenizer knows more tokens than the text encoder, which has {size}.",
                hint="Verify the repository's files.",
            )
        states = [encoder(mx.array([each]))[0] for each in both]
        mx.eval(states)
        text = self._tokenizer.decode(cut, skip_special_tokens=True).strip() if cut else ""
        return Told(prompt=states[0], negative=states[1], tokens=len(ids), truncated=text)

    def _ids(self, text: str) -> tuple[list[int], list[int]]:
        """The tokens that are read, the end's among them, and those beyond."""
        text = cleaned(text)
        whole: list[int] = list(self._tokenizer(text, verbose=False).input_ids)
        if len(whole) <= LENGTH:
            return whole, []
        read = list(self._tokenizer(text, truncation=True, max_length=LENGTH).input_ids)
        return read, whole[LENGTH - self._specials :]


def cleaned(text: str) -> str:
    """A prompt without what encodings did to it; wide punctuation becomes narrow, as in training."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


__all__ = ["LENGTH", "Reader", "Told", "cleaned"]
