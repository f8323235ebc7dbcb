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
    text = path.read_text("utf-8")
    found = re.search(rf"^{re.escape(name)}\b[^=\n]*=(?!=)", text, re.MULTILINE)
    if found is None:
        return None
    lines = text[found.end() :].split("\n")
    for end, line in enumerate(lines, 1):
        if end > 1 and line[:1].isspace():
            continue  # a statement ends on a line that is not indented
        try:
            return ast.literal_eval("\n".join(lines[:end]).strip())
        except SyntaxError:
            continue
        except ValueError:
            return None
    return None


__all__ = ["constant"]
