"""Texts to token ids: the repository's own tokenizer, its length limit, and what was cut off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from attrs import frozen
from mlxengine import Event
from mlxengine.errors import IncompatibleWeightsError, UnsupportedInputError
from mlxengine.toolkit.aside import Aside

T = TypeVar("T")
_AT_ONCE = 1 << 16  # characters that are encoded in a few milliseconds
Ids = np.ndarray[Any, np.dtype[np.int32]]


@frozen(kw_only=True)
class Tokens:
    """One text, or one picture, as the encoder takes it.

    ``types`` tells the two texts of a pair apart; at the last ``unseen`` of its tokens no other looks.
    Of a picture there are ``pixels``, float32 (height, width, 3), and its ids say how many places it takes.
    """

    ids: Ids
    types: Ids | None = None
    truncated: bool = False
    unseen: int = 0
    pixels: np.ndarray[Any, Any] | None = None


class Tokenizer:
    """The tokenizer of a repository, without padding: batches are padded where they are made.

    Args:
        folder: where the tokenizer's files are.
        max_length: longest input in tokens, special ones included; ``None`` takes the tokenizer's own.
        cap: positions that the encoder has, at most; ``None`` for relative ones.
        lower_case: lower-case the texts.
        special_tokens: whether the tokenizer's special tokens stand around a text.

    Raises:
        IncompatibleWeightsError: the folder holds no tokenizer that can be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int | None,
        cap: int | None,
        lower_case: bool,
        special_tokens: bool = True,
    ) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        alone = folder / "tokenizer.json"
        try:
            # Static embeddings keep nothing beside that file.
            self._slow = (
                AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
                if special_tokens
                else PreTrainedTokenizerFast(tokenizer_file=str(alone))
            )
        except Exception as error:
            raise IncompatibleWeightsError(
                f"The tokenizer in {folder} cannot be loaded: {error}",
                hint="A repository needs tokenizer.json, or a vocabulary that transformers reads.",
            ) from error
        limits = [max_length or int(self._slow.model_max_length), cap or 2**31 - 1, 2**31 - 1]
        self.max_length = min(limits)
        self._types = "token_type_ids" in self._slow.model_input_names
        self._fast = getattr(self._slow, "backend_tokenizer", None)
        self._special = special_tokens
        self._aside = Aside(threads=2)
        if self._fast is not None:
            self._fast.no_padding()
            if lower_case:
                _lower_case(self._fast)
            self._fast.enable_truncation(
                self.max_length, strategy="longest_first", direction=self._slow.truncation_side
            )

    @property
    def name(self) -> str:
        """The tokenizer's class."""
        return type(self._slow).__name__

    @property
    def whole(self) -> Any:
        """The tokenizer as transformers has it."""
        return self._slow

    @property
    def chat_template(self) -> str | None:
        """The source of its chat template, where it has one."""
        found = getattr(self._slow, "chat_template", None)
        return found if isinstance(found, str) else None

    def terms(self, count: int) -> list[str]:
        """The first tokens of the vocabulary, as they are written there; empty where there is none."""
        return [word or "" for word in self._slow.convert_ids_to_tokens(list(range(count)))]

    @property
    def words(self) -> dict[str, str]:
        """Its special tokens by the names that chat templates know them by."""
        return {
            name: str(word) for name, word in self._slow.special_tokens_map.items() if isinstance(word, str)
        }

    @property
    def size(self) -> int:
        """Number of tokens that it knows."""
        return len(self._slow)

    def encoding(self, inputs: Sequence[Any]) -> Generator[Event | None, None, list[Tokens]]:
        """Within an iterator of events: texts or pairs encoded, beside the device unless that is quick."""
        size = sum(len(part) for item in inputs for part in (item if isinstance(item, tuple) else (item,)))
        if size <= _AT_ONCE:
            return self._encode(list(inputs))
        return (yield from self.beside(lambda: self._encode(list(inputs))))

    def beside(self, work: Callable[[], T]) -> Generator[Event | None, None, T]:
        """Within an iterator of events: what takes long, done beside the device."""
        return (yield from self._aside.beside(work))

    def close(self) -> None:
        """End the threads that read long texts."""
        self._aside.close()

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, cut to ``max_length``.

        Raises:
            UnsupportedInputError: the tokenizer refuses a text.
        """
        return self._encode(list(texts))

    def register(self, words: Sequence[str]) -> None:
        """Read each of these as one token, or what it begins with up to a blank, if the vocabulary has it."""
        from tokenizers import AddedToken

        known = self._slow.get_vocab()
        found = (next((part for part in (word, *word.split()[:1]) if part in known), None) for word in words)
        for part in found:
            if part is not None and self._fast is not None:
                self._fast.add_special_tokens([AddedToken(part, normalized=False, special=True)])

    def cut_to(self, longest: int | None) -> Tokenizer:
        """The same tokenizer with another longest input; ``None`` for itself."""
        if longest is None:
            return self
        other = copy.copy(self)
        other.max_length = min(longest, self.max_length)
        if self._fast is not None:
            other._fast = type(self._fast).from_str(self._fast.to_str())
            other._fast.enable_truncation(
                other.max_length, strategy="longest_first", direction=self._slow.truncation_side
            )
        return other

    def cut_nothing(self) -> None:
        """From now on give all tokens of a text: somebody else cuts them."""
        if self._fast is not None:
            self._fast.no_truncation()

    def encode_plain(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text without special tokens around it.

        Raises:
            UnsupportedInputError: the tokenizer refuses a text.
        """
        try:
            if self._fast is None:
                found = [self._slow.encode(text, add_special_tokens=False, verbose=False) for text in texts]
                return [np.array(ids, dtype=np.int32) for ids in found]
            encoded = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError, ValueError) as error:
            raise _refused(error) from error
        return [np.array(item.ids, dtype=np.int32) for item in encoded]

    def token(self, word: str | int) -> int:
        """The first token of a word that stands alone; a token's id is itself."""
        return word if isinstance(word, int) else int(self.encode_plain([word])[0][0])

    def prompt_length(self, prompt: str) -> int:
        """How many leading tokens of a text are its prompt's, special ones at the start included."""
        ids = self._encode([prompt])[0].ids
        closed = len(ids) > 0 and int(ids[-1]) in self._slow.all_special_ids
        return len(ids) - 1 if closed else len(ids)

    def _encode(self, inputs: list[Any]) -> list[Tokens]:
        pairs = bool(inputs) and isinstance(inputs[0], tuple)
        try:
            if self._fast is None:
                return [self._encode_slow(item, pairs) for item in inputs]
            found = self._fast.encode_batch_fast(inputs, add_special_tokens=self._special)
        except (UnicodeEncodeError, TypeError, ValueError) as error:
            raise _refused(error) from error
        return [
            Tokens(
                ids=np.array(item.ids, dtype=np.int32),
                types=np.array(item.type_ids, dtype=np.int32) if pairs and self._types else None,
                truncated=bool(item.overflowing),
            )
            for item in found
        ]

    def _encode_slow(self, item: Any, pairs: bool) -> Tokens:
        parts = item if pairs else (item,)
        types = pairs and self._types
        whole = self._slow(*parts, verbose=False)
        cut = self._slow(
            *parts,
            truncation="longest_first",
            max_length=self.max_length,
            return_token_type_ids=types,
        )
        return Tokens(
            ids=np.array(cut["input_ids"], dtype=np.int32),
            types=np.array(cut["token_type_ids"], dtype=np.int32) if types else None,
            truncated=len(whole["input_ids"]) > len(cut["input_ids"]),
        )


def _refused(error: Exception) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"The tokenizer refuses a text: {error}", hint="Texts must be valid Unicode."
    )


def _lower_case(tokenizer: Any) -> None:
    """Put lower-casing before whatever else the tokenizer does to a text, unless it does it already."""
    from tokenizers import normalizers

    present = tokenizer.normalizer
    if present is not None and '"lowercase":true' in str(tokenizer.to_str()).replace(" ", ""):
        return
    steps = [normalizers.Lowercase(), *([present] if present is not None else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)


__all__ = ["Tokenizer", "Tokens"]
