"""Bodies of multipart/form-data (RFC 7578): fields as the values that JSON would have, files as bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ._fields import whole
from ._http import Receive, Scope, header, read_body, read_json
from ._refusals import Refusal
from .options import ServerOptions

_MOST_PARTS = 100
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


async def read_form(
    scope: Scope, receive: Receive, options: ServerOptions, kinds: Mapping[str, type]
) -> dict[str, Any]:
    """The fields of a body, a form's or a JSON object's.

    A name that comes several times, or ends with ``[]``, is a list.

    Args:
        scope, receive, options: as for `read_json`.
        kinds: what a form's fields are, by name: ``int``, ``float`` or ``bool``; others are texts.

    Raises:
        Refusal: 400, it is neither, or a field is none of its kind; and as `read_body`.
        ClientGone: as `read_body`.
    """
    kind = header(scope, b"content-type") or ""
    if not kind.lower().startswith("multipart/form-data"):
        return await read_json(scope, receive, options)
    body = await read_body(scope, receive, options)
    parts = await asyncio.to_thread(_parts, kind, body)
    found: dict[str, Any] = {}
    for name, value in parts:
        plain = name.removesuffix("[]")
        if isinstance(value, str):
            value = _value(plain, value, kinds.get(plain, str))
        if plain in found:
            kept = found[plain]
            found[plain] = [*(kept if isinstance(kept, list) else [kept]), value]
        else:
            found[plain] = value if plain == name else [value]
    return found


def _parts(kind: str, body: bytes) -> list[tuple[str, str | bytes]]:
    """The parts in their order, all in memory: what a client sends is put into no file."""
    from python_multipart import create_form_parser
    from python_multipart.exceptions import FormParserError

    # It warns of every broken body, which anybody can send as many of as they like.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    found: list[tuple[str, str | bytes]] = []
    complete = False

    def keep(name: bytes | None, value: str | bytes) -> None:
        if len(found) >= _MOST_PARTS:
            raise FormParserError(f"it has more than {_MOST_PARTS} parts")
        found.append(((name or b"").decode(), value))

    def ended() -> None:
        nonlocal complete
        complete = True

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        keep(file.field_name, file.file_object.read())

    try:
        parser = create_form_parser(
            {"Content-Type": kind.encode("latin-1")},
            lambda field: keep(field.field_name, (field.value or b"").decode()),
            on_file,
            {"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True},
        )
        parser.on_end = ended
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError, ValueError) as error:
        raise _broken(str(error)) from None
    if not complete:
        raise _broken("its last boundary is missing")
    return found


def _broken(why: str) -> Refusal:
    return Refusal(400, f"The body is no multipart form: {why}.", code="invalid_form")


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if not text:
        return None
    try:
        return _READ[kind](text)
    except (KeyError, ValueError):
        raise Refusal(400, f"{name} must be {_SAID[kind]}.", param=name, code="invalid_type") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        found = whole(float(text))
        if not isinstance(found, int):
            raise
        return found


_READ: dict[type, Callable[[str], Any]] = {
    int: _integer,
    float: float,
    bool: lambda text: _FLAGS[text.lower()],
}
_SAID = {int: "an integer", float: "a number", bool: "true or false"}

__all__ = ["read_form"]
