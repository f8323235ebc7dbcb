"""From token ids to text, piece by piece: nothing lost, nothing sent too early."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_WINDOW, _CONTEXT = 16, 4


class Detokenizer:
    """Decodes a growing sequence of tokens; the pieces joined are what decoding all at once gives.

    Only a short window is decoded again for each token: some tokens that are already sent, as context
    (a decoder may strip or join at the start), and those after them.

    Args:
        decode: token ids to text, without any clean-up of spaces.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._start = 0  # where the window begins
        self._sent_text = ""  # the text of the window's tokens that are sent
        self._length = 0  # characters sent in all

    def add(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_UNFINISHED) or not text.startswith(self._sent_text):
            return ""
        piece = text[len(self._sent_text) :]
        self._length += len(piece)
        self._sent_text = text
        if len(self._tokens) - self._start > _WINDOW:
            self._move(text)
        return piece

    def _move(self, text: str) -> None:
        """Let the window begin later, where its tokens say what they say behind the others.

        That is not so among the bytes of a character, nor where a decoder treats the first token otherwise.
        """
        for context in range(_CONTEXT, _WINDOW):
            start = len(self._tokens) - context
            rest = self._decode(self._tokens[start:])
            if _UNFINISHED not in rest and rest and text.endswith(rest):
                self._start, self._sent_text = start, rest
                return

    def finish(self) -> str:
        """The rest, with what will never become a complete character."""
        piece = self._decode(self._tokens)[self._length :]
        self._length += len(piece)
        return piece


class StopTexts:
    """Watches for texts that end an answer and holds back what could be the beginning of one."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """The text that may be sent, and the stop text that was found (earliest in the answer)."""
        if not self._texts:
            return piece, None
        text = self._held + piece
        found = [(at, stop) for stop in self._texts if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda item: (item[0], -len(item[1])))
            self._held = ""
            return text[:at], stop
        keep = max(_overlap(text, stop) for stop in self._texts)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """What was held back and did not become a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


__all__ = ["Detokenizer", "StopTexts"]
