"""How much of a piece of tool calls that breaks off is whole.

mlx-lm's parsers are made for pieces that were closed: some take what is there of an argument list, others
pass over a call that is not closed. So what is not whole is cut off before a piece without its end is parsed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

# Formats whose piece holds several calls: how each of them ends, and how an argument begins and ends.
_CALL_ENDS = {
    "kimi_k2": ("<|tool_call_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    "kimi_k3": ("<|close|>call<|sep|>", "<|open|>argument", "<|close|>argument<|sep|>"),
    "minimax_m2": ("</invoke>", "<parameter name=", "</parameter>"),
    "muse_spark": ("</atem:invoke>", "<atem:parameter", "</atem:parameter>"),
}
_HEADER = re.compile(r"[\w-]+\s*\[ARGS\]\s*")


def whole_calls(parser: Callable[..., Any], raw: str) -> int:
    """How many of the first characters of ``raw``, the inside of an unclosed piece, are whole calls."""
    form = str(getattr(parser, "__module__", "")).rpartition(".")[2]
    if form in _CALL_ENDS:
        end, opened, closed = _CALL_ENDS[form]
        whole = len(raw)
        while (at := raw.rfind(end, 0, whole)) >= 0:
            whole = at + len(end)
            if raw.count(opened, 0, whole) <= raw.count(closed, 0, whole):
                return whole
            whole = at  # what looks like the end stands in an argument that goes on
        return 0
    if _is_closed(raw.strip()):
        return len(raw)
    return _after_headers(raw) if form == "mistral" else 0


def _is_closed(text: str) -> bool:
    """Whether a text closes what it opens by itself: JSON, or a list of Python's calls."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        pass
    try:
        return isinstance(ast.parse(text, mode="eval").body, ast.List)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _after_headers(raw: str) -> int:
    """Where the last whole one of ``name[ARGS]{…}name[ARGS]{…}`` ends."""
    whole, decoder = 0, json.JSONDecoder()
    while found := _HEADER.search(raw, whole):
        try:
            _, whole = decoder.raw_decode(raw, found.end())
        except (ValueError, RecursionError):
            break
    return whole


__all__ = ["whole_calls"]
