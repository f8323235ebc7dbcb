"""The code blocks of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@frozen
class Block:
    """A fenced block: its info string, its text, and the line of the page that its text begins on."""

    info: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.info == "python"

    @property
    def exempt(self) -> bool:
        return self.info == "python no-run"


def pages() -> list[Path]:
    """Every page that people read: the documentation, the README files."""
    nested = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]
    return [ROOT / "README.md", *sorted(path for path in nested if ".venv" not in path.parts)]


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["info"].strip(), found["body"], text.count("\n", 0, found.start("body")) + 1)
        for found in _FENCE.finditer(text)
    ]
