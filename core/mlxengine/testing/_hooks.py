"""A plugin's hooks, called one by one, with what they return checked for its type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._engine import border
from .._engine.host import Host
from ..contract.checks import Check, SelfTestContext
from ..contract.configuration import ModelCard, ModelConfiguration
from ..contract.events import Event
from ..contract.features import Feature
from ..contract.hookspecs import Claim, Command, LoadContext, Loaded, RunContext
from ..contract.kinds import Kind
from ..contract.requests import Request
from ._clauses import Broken, demand


class Hooks:
    """The hooks of one plugin, called as the engine calls them, but with their own exceptions.

    ``ask`` calls a function that asks the plugin about itself, where it may not keep the kit.
    """

    def __init__(self, name: str, plugin: object, ask: Callable[[Callable[[], Any]], Any]) -> None:
        self._ask = ask
        self.host: Host = ask(lambda: Host([(name, plugin)]))
        [self._record] = self.host.records
        self._plugin = plugin

    def problems(self) -> list[str]:
        """What is wrong with the hooks before any is called."""
        found = [] if self._record.error is None else [self._record.error.message]
        for name in ("claim_model", "load_model", "generate"):
            function = getattr(self._plugin, name, None)
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                found.append(f"{name} is a generator function, which can neither decline nor validate")
            elif inspect.iscoroutinefunction(function):
                found.append(f"{name} is a coroutine function")
        return found

    def _call(self, hook: str, **arguments: Any) -> Any:
        if self._record.error is not None and self._record.error.hook != "list_features":
            raise Broken(self._record.error.message)
        function = self._record.hooks.get(hook)
        return None if function is None else function(arguments)

    def _list(self, name: str, wanted: type[Any]) -> tuple[Any, ...]:
        found = self._ask(lambda: self._call(name)) or ()
        demand(isinstance(found, Sequence), f"{name} returned {type(found).__name__}, not a sequence")
        for item in found:
            demand(isinstance(item, wanted), f"{name} returned a {type(item).__name__} among its items")
        return tuple(found)

    def features(self) -> tuple[Feature[Any], ...]:
        return self._list("list_features", Feature)

    def models(self) -> tuple[ModelConfiguration, ...]:
        return self._list("list_models", ModelConfiguration)

    def kinds(self) -> tuple[Kind, ...]:
        return self._list("list_kinds", Kind)

    def commands(self) -> tuple[Command, ...]:
        return self._list("list_commands", Command)

    def claim(self, card: ModelCard) -> Claim | None:
        return border.claim(self._record, self._ask(lambda: self._call("claim_model", card=card)))

    def load(self, card: ModelCard, context: LoadContext) -> Loaded:
        return border.loaded(self._record, self._call("load_model", card=card, context=context))

    def generate(self, model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
        found = self._call("generate", model=model, request=request, context=context)
        if found is not None and not isinstance(found, Iterator):
            raise Broken(f"generate returned {type(found).__name__}, not an iterator or None")
        return found

    def self_test(self, context: SelfTestContext) -> tuple[Check, ...] | None:
        if "self_test" not in self._record.hooks:
            return None
        found = self._call("self_test", context=context) or ()
        for item in found:
            demand(isinstance(item, Check), f"self_test returned a {type(item).__name__} among its items")
        return tuple(found)
