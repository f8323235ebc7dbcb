"""Building a grammar in llguidance's Lark for the tokens of one tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

ANYTHING = r"/(?s:.*)/"
_SPECIAL = r"[\\.+*?()|\[\]{}^$#&~/-]"  # what means something in a pattern, or ends one


class Lark:
    """Rules of a grammar, and expressions for its texts.

    Args:
        tokenizer: of transformers; its added tokens are written by their ids, since no text stands for one
            that is special.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._ids = {str(text): int(token) for token, text in added.items()}
        self._parts = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))) or "(?!)")
        self._rules: dict[str, str] = {}
        self._names = 0

    def rule(self, body: str, *, lazy: bool = False, terminal: bool = False) -> str:
        """The name of a rule with this body."""
        self._names += 1
        name = f"{'T' if terminal else 'r'}{self._names}"
        self._rules[f"{name}[lazy]" if lazy else name] = body
        return name

    def later(self) -> str:
        """The name of a rule whose body is given later, with `define`."""
        self._names += 1
        return f"r{self._names}"

    def define(self, name: str, body: str) -> None:
        """Give the body of a rule."""
        self._rules[name] = body

    def source(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())])

    def token(self, text: str) -> int | None:
        """The id of the added token that the text begins with."""
        found = self._parts.match(text)
        return self._ids[found[0]] if found else None

    def text(self, text: str) -> str:
        """A text to the letter, its added tokens as such."""
        found, at = [], 0
        for token in self._parts.finditer(text):
            found += [_quoted(text[at : token.start()]), f"<[{self._ids[token[0]]}]>"]
            at = token.end()
        return " ".join(item for item in (*found, _quoted(text[at:])) if item)

    def through(self, mark: str, body: str = ANYTHING) -> str:
        """A text that fits the expression of a terminal, up to the first mark, and the mark."""
        token = self._parts.search(mark)
        plain = mark[: token.start()] if token else mark
        if not plain:
            return f"{self.rule(body, terminal=True)} {self.text(mark)}"
        found = self.rule(self.rule(f"({body}) /{_escaped(plain)}/", terminal=True), lazy=True)
        return f"{found} {self.text(mark[len(plain) :])}" if token else found

    def without(self, mark: str, silent: tuple[str, ...] = ()) -> str:
        """Anything that holds no mark; ``silent``: marks that may stand there, which begin like it."""
        token = self.token(mark)
        if token is None:
            return self.rule(f"{ANYTHING} & ~/(?s:.*){_escaped(mark)}(?s:.*)/", terminal=True)
        return f"({' | '.join([f'<[^{token}]>', *map(self.text, silent)])})*"

    def up_to(self, mark: str, silent: tuple[str, ...] = ()) -> str:
        """Anything up to the first mark, and the mark."""
        if self.token(mark) is None:
            return self.through(mark)
        return f"{self.without(mark, silent)} {self.text(mark)}"

    def json(self, schema: Mapping[str, Any], blanks: str = " ?") -> str:
        """JSON of a schema; ``blanks``: a pattern of what may stand between its parts."""
        return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': blanks}})}"

    def pattern(self, pattern: str) -> str:
        """Text that fits a regular expression."""
        slashes = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\/", pattern).replace("\n", "\\n")
        return f"/{slashes}/"


def one_of(options: list[str]) -> str:
    """Any of several expressions."""
    return options[0] if len(options) == 1 else f"({' | '.join(options)})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _escaped(text: str) -> str:
    return re.sub(_SPECIAL, r"\\\g<0>", text).replace("\n", "\\n")


__all__ = ["ANYTHING", "Lark", "one_of"]
