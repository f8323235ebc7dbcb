"""What the engine knows of the installed plugins, and which of them serves a model.

``engine.plugins`` lists the first, ``engine.explain(model)`` says the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from ..errors import PluginError
from .hookspecs import Claim

if TYPE_CHECKING:
    from .kinds import Kind


@define(kw_only=True, eq=False)
class PluginRecord:
    """One plugin: where it comes from, and why it was set aside if it was.

    Args:
        name: the entry-point name.
        distribution, version: what provides it; ``None`` for a plugin that was handed over as an object.
        plugin: the module or object, ``None`` if it could not be imported.
        hooks: its own implementations by hook name, called with a mapping of arguments.
        kinds: the kinds of model that it lists.
        error: why it is set aside; ``None`` for one that works.
        off: whether it was turned off, and was not even imported.
    """

    name: str
    distribution: str | None = None
    version: str | None = None
    plugin: object | None = field(default=None, repr=False)
    hooks: Mapping[str, Callable[..., Any]] = field(default=MappingProxyType({}), repr=False)
    kinds: tuple[Kind, ...] = ()
    error: PluginError | None = None
    off: bool = False

    @property
    def where(self) -> str:
        """Name and distribution, for messages."""
        return f"{self.name!r} ({self.distribution})" if self.distribution else repr(self.name)


@frozen(kw_only=True)
class Owner:
    """The plugin that serves a model, and why.

    Args:
        record: the plugin.
        claim: its claim, the best one.
        others: the other plugins that claimed the model, by name, with their claims.
    """

    record: PluginRecord
    claim: Claim
    others: tuple[tuple[str, Claim], ...] = ()


__all__ = ["Owner", "PluginRecord"]
