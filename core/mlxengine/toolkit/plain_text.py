"""What people write stays text: it never becomes one of the tokens that give a prompt its structure.

Tokenizers look for their special tokens anywhere in a text. Whoever writes part of a prompt (a user, a web
page that a tool read) could so end the turn and begin another as somebody else. So each such text gets a mark
after its first letter, a character that nothing else holds, *before* the chat template is applied: the
template's own markers are all that is left, whatever the template does to the texts around them. After
encoding, the mark's tokens are taken out again. A conversation without such texts is not touched at all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import UnsupportedInputError

# Unicode's noncharacters, which no text should hold, then some for private use.
_MARKS = tuple(map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE0F0, 0xE100))))

_PARTING = re.compile(r"""split\(\s*['"]([^'"]+)['"]|['"]([^'"]+)['"]\s+in\s""")


class Markers:
    """The texts that a tokenizer reads as structure, and how to write them as plain text.

    Those are its special tokens, and the other added tokens that the chat template names (``<tool_call>``,
    ``<think>``); added tokens that are mere vocabulary stay what they are.

    Args:
        tokenizer: of transformers, or a wrapper that passes attributes on.
        template: source of the chat template.
        more: further texts that mean something, such as the places of pictures.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, more: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
        special = {str(item) for item in added if item.special} | set(more)
        named = {text for text in map(str, added) if template and text in template and not _is_plain(text)}
        self._pattern = _pattern(special | named)
        # By these the template parts what an assistant said: its reasoning from its answer.
        parting = {text for pair in _PARTING.findall(template or "") for text in pair}
        self._said = _pattern(special | (named - parting))
        fast = getattr(tokenizer, "backend_tokenizer", None)
        normal = getattr(fast, "normalizer", None) if any(item.normalized for item in added) else None
        self._normal = getattr(normal, "normalize_str", None)
        self._runs: dict[str, list[int]] = {}

    def mark_for(self, values: Any) -> str:
        """A character that the values, nested as JSON is, hold nowhere; empty where there is nothing to hide.

        Raises:
            UnsupportedInputError: there is none that the tokenizer keeps apart from what stands around it.
        """
        texts = list(_texts(values))
        if self._pattern is None or all(self._found(text) is None for text in texts):
            return ""
        used = set().union(*(set(text) for text in texts if not text.isascii()))
        for mark in _MARKS:
            if mark not in used and self._run(mark):
                return mark
        raise _cannot()

    def hide(self, value: Any, mark: str, *, said: bool = False) -> Any:
        """The value, nested as JSON is, with the mark in all that would become structure.

        ``said``: an assistant said it, so what parts its reasoning from its answer is left to the template.
        """
        if isinstance(value, str):
            return self._hidden(value, mark, self._said if said else self._pattern)
        if isinstance(value, dict):
            return {self.hide(key, mark): self.hide(item, mark, said=said) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item, mark, said=said) for item in value]
        return value

    def hide_message(self, message: dict[str, Any], mark: str) -> dict[str, Any]:
        """The same for a message as chat templates take it, whose role is ours."""
        said = message["role"] == "assistant"
        return {
            name: item if name == "role" else self.hide(item, mark, said=said and name == "content")
            for name, item in message.items()
        }

    def _found(self, text: str) -> str | None:
        """The text in which the tokenizer would find a marker: itself, or what it makes of it first."""
        assert self._pattern is not None
        if self._pattern.search(text):
            return text
        if self._normal is not None and not text.isascii():
            # Some are looked for only after normalisation, which makes them of what looks like them.
            normal = str(self._normal(text))
            return normal if self._pattern.search(normal) else None
        return None

    def _hidden(self, text: str, mark: str, pattern: re.Pattern[str] | None) -> str:
        if not mark or pattern is None or (found := self._found(text)) is None:
            return text
        return pattern.sub(lambda letter: letter[0] + mark, found)

    def encode(self, text: str, mark: str = "", *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text that may hold marks.

        Raises:
            UnsupportedInputError: the tokenizer does not keep the marks apart.
        """
        text = with_marks(text, mark)
        ids = token_ids(self._tokenizer, text, add_special_tokens=add_special_tokens)
        if not mark or mark not in text:
            return ids
        return at_places(ids, self.kept(ids, text, mark))

    def kept(self, ids: Sequence[int], text: str, mark: str) -> list[range]:
        """The places of the tokens that are not of marks.

        Raises:
            UnsupportedInputError: the tokenizer does not keep the marks apart.
        """
        run = self._run(mark)
        tokens = list(ids)
        found: list[range] = []
        at = marks = 0
        while (begins := _index(tokens, run[0], at)) < len(tokens):
            whole = tokens[begins : begins + len(run)] == run
            found.append(range(at, begins if whole else begins + 1))
            at = begins + (len(run) if whole else 1)
            marks += whole
        found.append(range(at, len(tokens)))
        if marks != text.count(mark):
            raise _cannot()
        return found

    def _run(self, mark: str) -> list[int]:
        """The tokens of a mark between two letters; empty where it has none of its own."""
        if mark not in self._runs:
            ids = token_ids(self._tokenizer, f"x{mark}y", add_special_tokens=False)
            words = [self._tokenizer.decode([token]) for token in ids]
            first = next((at for at, word in enumerate(words) if "x" in word), len(ids))
            last = next((at for at, word in enumerate(words) if "y" in word), 0)
            self._runs[mark] = ids[first + 1 : last]
        return self._runs[mark]


def _cannot() -> UnsupportedInputError:
    return UnsupportedInputError(
        "A text holds the model's own special tokens, which its tokenizer cannot read as plain text.",
        hint="Leave them out, or allow them with the flag special_tokens_in_text.",
    )


def at_places(ids: Sequence[int], places: Iterable[range]) -> list[int]:
    """The tokens at the places, by slices: a loop over each of them would hold Python's lock for long."""
    found: list[int] = []
    for part in places:
        found += ids[part.start : part.stop]
    return found


def unused(values: Any, *, beside: str = "") -> str:
    """A character that the values, nested as JSON is, hold nowhere, other than ``beside``.

    Raises:
        UnsupportedInputError: they hold all that could be one.
    """
    texts = list(_texts(values))
    for mark in _MARKS:
        if mark != beside and not any(mark in text for text in texts):
            return mark
    raise UnsupportedInputError("The conversation holds every character that no text should hold.")


def with_marks(text: str, mark: str) -> str:
    """A rendered text whose marks are themselves again where the template wrote them as JSON escapes."""
    return text.replace(f"\\u{ord(mark):04x}", mark) if mark else text


def token_ids(tokenizer: Any, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text, without Python's lock where the tokenizer can do that."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    (found,) = fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return list(found.ids)


def most_characters(tokenizer: Any, tokens: int) -> int:
    """A text of more characters has more than ``tokens`` tokens, so it need not be encoded to know.

    The longest token bounds it; a tokenizer that normalises may make a text a few times shorter first.
    """
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    normal = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return int(longest * (tokens + 1) * (4 if normal is not None else 1))


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """The first letter of each of the texts, wherever they stand, also where they overlap."""
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for text in sorted(texts):
        if len(text) > 1:
            rests[text[0]].append(re.escape(text[1:]))
    if not rests:
        return None
    return re.compile("|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()))


def _index(tokens: list[int], token: int, start: int) -> int:
    """Where a token is found from a place on, or the end."""
    try:
        return tokens.index(token, start)
    except ValueError:
        return len(tokens)


def _is_plain(text: str) -> bool:
    """Whether a template that holds this text may well mean the word, or the blank space."""
    return text.isspace() or text.strip().isalnum()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


__all__ = ["Markers", "at_places", "most_characters", "token_ids", "unused", "with_marks"]
