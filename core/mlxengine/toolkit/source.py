"""Read a constant out of a library's source without importing the library, which may take seconds."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any


def constant(path: Path, name: str) -> Any:
    """The literal that a module gives a name at its top level; ``None`` where it gives none.

    Only the statement itself is parsed: a module of thousands of lines takes tens of milliseconds.

    Args:
        path: the module's file.
        name: for example ``"MODEL_REMAPPING"``.
    """
    found = _value(path, name)
    try:
        return None if found is None else ast.literal_eval(found)
    except ValueError:
        return None


def keys(path: Path, name: str) -> frozenset[str]:
    """The texts that are keys of the dictionary under a name at a module's top level, whatever its values.

    Args:
        path: the module's file.
        name: for example ``"MODEL_CONFIG"``.
    """
    found = _value(path, name)
    stated = found.keys if isinstance(found, ast.Dict) else []
    values = (item.value for item in stated if isinstance(item, ast.Constant))
    return frozenset(value for value in values if isinstance(value, str))


def _value(path: Path, name: str) -> ast.expr | None:
    text = path.read_text("utf-8")
    found = re.search(rf"^{re.escape(name)}\b[^=\n]*=(?!=)", text, re.MULTILINE)
    if found is None:
        return None
    lines = text[found.end() :].split("\n")
    for end, line in enumerate(lines, 1):
        if end > 1 and line[:1].isspace():
            continue  # a statement ends on a line that is not indented
        try:
            return ast.parse("\n".join(lines[:end]).strip(), mode="eval").body
        except SyntaxError:
            continue
    return None


__all__ = ["constant", "keys"]
