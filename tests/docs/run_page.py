"""Run in a process of its own: the code blocks of one page, in order, in one namespace."""

from __future__ import annotations

import sys
import types

from tests.docs.blocks import Path, blocks


def main() -> None:
    page = Path(sys.argv[1])
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    for block in blocks(page):
        if block.runs:
            # the page's own line numbers, so that a traceback points at the documentation
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), module.__dict__)


if __name__ == "__main__":
    main()
