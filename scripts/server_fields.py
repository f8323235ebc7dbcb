"""Write docs/reference/server-fields.md: what becomes of every field of every request to the server.

python scripts/server_fields.py [--check]

The tables are the server's own: it checks requests by them. Tests compare them with the clients' models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlxengine_serve._fields import Field, Table
from mlxengine_serve.app import DIALECTS, dialect

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "server-fields.md"
HEAD = """\
# The server's request fields

Written by `scripts/server_fields.py`; do not edit it by hand.

What [`mlxengine serve`](../how-to/serve.md) makes of each field. *Honoured*: it does what the dialect says.
*Refused*: status 400 with the field's name, unless it is `null` or asks for what there is anyway (in
brackets). *The caller's*: it asks nothing of a model and changes nothing here. A field that is in no table
passes, and the header `x-mlxengine-ignored` of the answer names it.
"""


def row(field: Field) -> str:
    """A field as a row of a table."""
    neutral = f" ({', '.join(f'`{json.dumps(value)}`' for value in field.neutral)})" if field.neutral else ""
    note = field.note.replace("|", "\\|")
    return f"| `{field.name}` | {field.fate}{neutral} | {note} |"


def section(table: Table) -> str:
    """A table with its heading."""
    head = "| field | what becomes of it | |\n|-|-|-|\n"
    found = f"## {table.title}\n\n`POST {table.path}`\n\n{head}" + "\n".join(map(row, table.fields)) + "\n"
    if table.extra:
        found += "\nBeyond the dialect's own:\n\n" + head + "\n".join(map(row, table.extra)) + "\n"
    return found


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(dialect(path).table) for path in DIALECTS)])


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    if "--check" in sys.argv[1:]:
        current = TARGET.exists() and TARGET.read_text() == page()
        print("up to date" if current else f"{TARGET} is out of date: run scripts/server_fields.py")
        return 0 if current else 1
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
