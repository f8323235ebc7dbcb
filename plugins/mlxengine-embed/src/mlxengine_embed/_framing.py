"""Query and document as a language model reads them: in the text that a chat template writes around them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from mlxengine import Event
from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError, UnsupportedInputError
from mlxengine.toolkit.plain_text import Markers, most_characters
from mlxengine.toolkit.templates import ChatTemplate

from ._judge import CUT, Judge
from ._tokenize import Tokenizer, Tokens

Pair = tuple[str, str]
_PLACES = {"system": "\ufdd1", "query": "\ufdd2", "document": "\ufdd3"}
"""What is rendered in the place of each content."""


class Framing:
    """Encodes pairs in a template.

    What instructions, queries and documents say stays text: no special token comes of it. A pair that is too
    long loses the end of its document, never what the template writes after it; a query that leaves no room
    for one is refused.

    Args:
        judge: says which template.
        tokenizer: the model's.
        name: the model's, for messages.

    Raises:
        UnsupportedArchitectureError: the template does not take a query and a document as they are.
        IncompatibleWeightsError: there is no template though the repository needs one.
    """

    def __init__(self, judge: Judge, tokenizer: Tokenizer, name: str) -> None:
        source = judge.template or tokenizer.chat_template
        if source is None:
            raise IncompatibleWeightsError(
                f"{name} puts its pairs into a chat template, but has none.",
                hint="The repository is incomplete.",
            )
        tokenizer.cut_nothing()
        self._judge, self._tokenizer, self._name = judge, tokenizer, name
        self._most = most_characters(tokenizer.whole, tokenizer.max_length)
        self._template = ChatTemplate(source)
        self._markers = Markers(tokenizer.whole, template=source)
        self._plain = self._rendered(instructed=False)
        self._instructed: Sequence[Sequence[str]] | None = None

    def encoding(
        self, pairs: Sequence[Pair], instruction: str
    ) -> Generator[Event | None, None, list[Tokens]]:
        """Within an iterator of events: pairs encoded, beside the device."""
        return (yield from self._tokenizer.beside(lambda: self.encode(pairs, instruction)))

    def encode(self, pairs: Sequence[Pair], instruction: str) -> list[Tokens]:
        """The tokens of pairs; an empty instruction leaves the template its own.

        Raises:
            UnsupportedInputError: a text cannot be encoded, or a query leaves no room for its document.
            UnsupportedArchitectureError: the template has no place for an instruction.
        """
        if instruction and self._instructed is None:
            self._instructed = self._rendered(instructed=True)
        parts = self._instructed if instruction and self._instructed else self._plain
        # What two pairs end with alike is the template's, token by token.
        one, other, *found = self._joined(parts, [("0", "0"), ("1 2 3 4", "1 2 3 4"), *pairs], instruction)
        same = 0
        while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
            same += 1
        end, longest = one[len(one) - same :], self._tokenizer.max_length
        long = [pair for pair, ids in zip(pairs, found, strict=True) if len(ids) > longest]
        for ids in self._joined(parts, [(query, "") for query, _ in long], instruction):
            if len(ids) >= longest:
                raise UnsupportedInputError(
                    f"A query and its instruction take {len(ids)} tokens or more, and {self._name} reads "
                    f"{longest} in all: there is no room for a document.",
                    hint="Shorten the query or the prompt.",
                )
        room = max(0, longest - len(end))
        return [
            Tokens(ids=np.concatenate([ids[:room], end])[-longest:], truncated=True)
            if len(ids) > longest
            else Tokens(ids=ids)
            for ids in found
        ]

    def close(self) -> None:
        """End the template's process."""
        self._template.close()

    def _rendered(self, instructed: bool) -> Sequence[Sequence[str]]:
        """The template's text, cut into what is encoded at a time, and that into its own text and places."""
        # Blanks around the places show a template that changes what it is given.
        contents = {role: f" {place} " for role, place in _PLACES.items() if instructed or role != "system"}
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._judge.listed else text}
            for role, text in contents.items()
        ]
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
        text = self._template.render({**self._tokenizer.words, **given, **self._judge.variables})
        if any(text.count(content) != 1 for content in contents.values()):
            raise UnsupportedArchitectureError(
                f"The chat template of {self._name} does not write {', '.join(contents)} each once, "
                "as they are.",
                hint='Give prompt="" to go without an instruction.'
                if instructed
                else "It needs messages of the roles query and document.",
            )
        for content in contents.values():
            text = text.replace(content, f"\0{content.strip()}\0")
        return [part.split("\0") for part in text.split(CUT)]

    def _joined(
        self, parts: Sequence[Sequence[str]], pairs: Sequence[Pair], instruction: str
    ) -> list[np.ndarray[Any, Any]]:
        marks = [self._mark((instruction, *pair)) for pair in pairs]
        hidden = [
            [self._markers.hide(text, mark) for text in (instruction, *(text[: self._most] for text in pair))]
            for pair, mark in zip(pairs, marks, strict=True)
        ]
        plain = [place for place, mark in enumerate(marks) if not mark]
        columns = []
        for part in parts:
            texts = [_filled(part, contents) for contents in hidden]
            encoded = self._tokenizer.encode_plain([texts[place] for place in plain])
            column = dict(zip(plain, encoded, strict=True))
            for place, mark in enumerate(marks):
                if mark:
                    column[place] = np.array(self._markers.encode(texts[place], mark), dtype=np.int32)
            columns.append(column)
        return [np.concatenate([column[place] for column in columns]) for place in range(len(pairs))]

    def _mark(self, texts: Sequence[str]) -> str:
        try:
            return self._markers.mark_for(texts)
        except UnsupportedInputError as error:
            raise UnsupportedInputError(
                f"A text holds special tokens of {self._name} that its tokenizer cannot read as plain text.",
                hint="Leave them out.",
            ) from error


def _filled(part: Sequence[str], contents: Sequence[str]) -> str:
    texts = dict(zip(_PLACES.values(), contents, strict=True))
    return "".join(texts.get(piece, piece) for piece in part)


__all__ = ["Framing"]
