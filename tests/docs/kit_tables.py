"""The tables of docs/reference/testing.md, from the kit's clauses and the careless plugins of the tests.

Run it (``python -m tests.docs.kit_tables``) to write them.
"""

from __future__ import annotations

from mlxengine.testing import clauses

from tests.unit.test_careless_plugins import TABLE

from .blocks import ROOT

PAGE = ROOT / "docs/reference/testing.md"
TABLES = {
    "clauses": (
        "| clause | promise | why it matters |",
        "|-|-|-|",
        *(f"| `{item.id}` | {item.says} | {item.why} |" for item in clauses()),
    ),
    "careless": TABLE,
}


def made(text: str) -> str:
    """The page with its tables as they are now."""
    for name, lines in TABLES.items():
        head, begin, rest = text.partition(f"<!-- {name}: made by tests/docs/kit_tables.py -->\n")
        _, end, tail = rest.partition(f"<!-- end of {name} -->\n")
        assert end, f"{PAGE} has no place for the table of {name}"
        text = "\n".join([head + begin, *lines, "", end + tail])
    return text


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text()))
