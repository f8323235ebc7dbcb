"""Showing a picture in a terminal that can: kitty's and iTerm2's graphics protocols.

Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol/ and https://iterm2.com/documentation-images.html
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

_CHUNK = 4096


def protocol(environment: Mapping[str, str]) -> str | None:
    """``"kitty"``, ``"iterm"`` or ``None``, by what terminals say of themselves in the environment."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None  # a multiplexer swallows the sequences
    if environment.get("KITTY_WINDOW_ID") or "kitty" in term or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def escape(png: bytes, name: str) -> str:
    """The characters that make a terminal which speaks the protocol ``name`` show a PNG."""
    if name == "kitty":
        return "".join(_kitty(base64.standard_b64encode(png).decode())) + "\n"
    text = base64.standard_b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)}:{text}\x07\n"


def _kitty(text: str) -> Iterator[str]:
    for start in range(0, len(text), _CHUNK):
        more = int(start + _CHUNK < len(text))
        control = f"a=T,f=100,m={more}" if start == 0 else f"m={more}"
        yield f"\x1b_G{control};{text[start : start + _CHUNK]}\x1b\\"


__all__ = ["escape", "protocol"]
