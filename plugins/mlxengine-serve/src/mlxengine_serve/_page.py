"""The page at ``/``: files of this package, and nothing from anywhere else."""

from __future__ import annotations

from importlib.resources import files

from attrs import define, field

from ._http import Receive, Scope, Send, send_bytes
from ._refusals import Refusal

FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "wire.js": "text/javascript",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _read() -> dict[str, bytes]:
    folder = files(__package__) / "page"
    return {name: (folder / name).read_bytes() for name in FILES}


@define(eq=False)
class Page:
    """``GET /`` and ``GET /page/NAME``: one of a fixed list of files, which are read once."""

    _content: dict[str, bytes] = field(factory=_read)

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        name = scope["path_params"].get("name", "index.html")
        scope["mlxengine_serve.route"] = "/"
        if name not in self._content:
            raise Refusal(404, "There is no such file.", code="unknown_url")
        await send_bytes(send, 200, self._content[name], f"{FILES[name]}; charset=utf-8", HEADERS)


__all__ = ["Page"]
