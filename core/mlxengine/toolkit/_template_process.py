"""Renders one chat template, in a process of its own: a template is a program of whoever published the model.

Started by `mlxengine.toolkit.templates` as a script, so that it imports jinja2 and nothing else. It reads
messages from its standard input and answers each on its standard output: eight bytes of length, then JSON.
The first names the template, each further one the variables of one rendering, or (``null``) asks for the
names that the template reads: finding them folds constants, which takes what it likes as well.

The operating system bounds what a process may take, whatever construct takes it: nothing that runs inside
the engine's own process could stop ``'a' * 10**9``, or a filter written in C that holds Python's lock.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import threading
import time
from datetime import datetime
from typing import Any, BinaryIO

_MAC = sys.platform == "darwin"


def main() -> None:
    """Serve until the standard input ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    start = _read(source)
    if start is None:
        return
    sys.path[:] = start["path"]
    _bound_memory(start["memory"])
    template: Any = None
    while (asked := _read(source)) is not None:
        try:
            if asked["variables"] is None:
                answer = _names(start["template"])
            else:
                template = template or _environment().from_string(start["template"])
                answer = _rendered(template, asked["variables"], start["characters"])
        except MemoryError:
            answer = {"bound": "memory"}
        except RecursionError:
            answer = {"error": "it nests too deeply"}
        except Exception as error:
            answer = {"error": f"{error}"[:2000] or type(error).__name__}
        _write(sink, answer)


def _rendered(template: Any, variables: dict[str, Any], most: int) -> dict[str, Any]:
    pieces, count = [], 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        count += len(piece)
        if count > most:
            return {"bound": "length"}
    return {"text": "".join(pieces)}


def _names(source: str) -> dict[str, Any]:
    """The variables that a template is given and reads, and what it looks for in values by name."""
    from jinja2 import meta, nodes

    tree = _environment().parse(source)
    texts = (node.value for node in tree.find_all(nodes.Const))
    names = {text for text in texts if isinstance(text, str)}
    names.update(node.attr for node in tree.find_all(nodes.Getattr))
    return {"variables": sorted(meta.find_undeclared_variables(tree)), "attributes": sorted(names)}


def _environment() -> Any:
    """The names and rules that templates are written for; those of transformers' chat templates."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks what the assistant said, for training; here it does nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = tojson
    found.globals["raise_exception"] = refuse
    found.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return found


def _bound_memory(most: int) -> None:
    """Let the process have so many bytes, by the system's limit or, where that is not kept, by looking."""
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        try:
            resource.setrlimit(limit, (most, most))
        except (OSError, ValueError):
            continue
    if _MAC:
        threading.Thread(target=_watch, args=(most,), daemon=True).start()


def _watch(most: int) -> None:
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most:  # bytes on a Mac
        time.sleep(0.05)
    os._exit(1)


def _read(source: BinaryIO) -> Any:
    head = source.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    return json.loads(source.read(length))


def _write(sink: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    sink.write(struct.pack("<Q", len(data)) + data)
    sink.flush()


if __name__ == "__main__":
    main()
