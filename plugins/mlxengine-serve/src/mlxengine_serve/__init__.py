"""A server for MLXEngine: models of every kind, by the interfaces that clients know.

`create_app` makes an ASGI application of an engine; ``mlxengine serve`` runs it with uvicorn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._answers import Asked as Asked
    from ._answers import Content as Content
    from ._answers import Writer as Writer
    from ._fields import Fields as Fields
    from ._refusals import Refusal as Refusal
    from .app import create_app as create_app
    from .options import Key as Key
    from .options import ServedModel as ServedModel
    from .options import ServerOptions as ServerOptions
    from .options import read_keys as read_keys
    from .routes import Door as Door

_HOMES = {
    "Asked": "_answers",
    "Content": "_answers",
    "Fields": "_fields",
    "Refusal": "_refusals",
    "Writer": "_answers",
    "create_app": "app",
    "Door": "routes",
    "Key": "options",
    "ServedModel": "options",
    "ServerOptions": "options",
    "read_keys": "options",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package: what a server is made of waits until there is one.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
