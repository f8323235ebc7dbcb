"""A plugin's hooks, called one by one, with what they return checked for its type."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pluggy

from ..configuration import ModelCard, ModelConfiguration
from ..events import Event
from ..features import Feature
from ..hookspecs import (
    PROJECT,
    REQUIRED_HOOKS,
    Check,
    Claim,
    Command,
    HookSpecs,
    LoadContext,
    Loaded,
    RunContext,
    SelfTestContext,
)
from ..requests import Request
from ._clauses import Broken, demand


class Hooks:
    """The hooks of one plugin."""

    def __init__(self, name: str, plugin: object) -> None:
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(HookSpecs)
        manager.register(plugin, name)
        manager.check_pending()
        self._hooks = {hook.name: hook for hook in manager.get_hookcallers(plugin) or ()}
        self.implementations = {
            name: implementation.function
            for name, hook in self._hooks.items()
            for implementation in hook.get_hookimpls()
        }

    def problems(self) -> list[str]:
        """What is wrong with the hooks before any is called."""
        found = [f"{name} is missing" for name in REQUIRED_HOOKS if name not in self._hooks]
        for name, function in self.implementations.items():
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                found.append(f"{name} is a generator function, which can neither decline nor validate")
            elif inspect.iscoroutinefunction(function):
                found.append(f"{name} is a coroutine function")
        return found

    def _call(self, name: str, **arguments: Any) -> Any:
        if name not in self._hooks:
            return None
        answers = self._hooks[name](**arguments)  # pluggy leaves out an answer of None
        return answers[0] if answers else None

    def _list(self, name: str, wanted: type[Any]) -> tuple[Any, ...]:
        found = self._call(name) or ()
        demand(isinstance(found, Sequence), f"{name} returned {type(found).__name__}, not a sequence")
        for item in found:
            demand(isinstance(item, wanted), f"{name} returned a {type(item).__name__} among its items")
        return tuple(found)

    def features(self) -> tuple[Feature[Any], ...]:
        return self._list("list_features", Feature)

    def models(self) -> tuple[ModelConfiguration, ...]:
        return self._list("list_models", ModelConfiguration)

    def commands(self) -> tuple[Command, ...]:
        return self._list("list_commands", Command)

    def claim(self, card: ModelCard) -> Claim | None:
        found = self._call("claim_model", card=card)
        if found is not None and not isinstance(found, Claim):
            raise Broken(f"claim_model returned {type(found).__name__}, not Claim or None")
        return found

    def load(self, card: ModelCard, context: LoadContext) -> Loaded:
        found = self._call("load_model", card=card, context=context)
        if not isinstance(found, Loaded):
            raise Broken(f"load_model returned {type(found).__name__} for its own model, not Loaded")
        return found

    def generate(self, model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
        found = self._call("generate", model=model, request=request, context=context)
        if found is not None and not isinstance(found, Iterator):
            raise Broken(f"generate returned {type(found).__name__}, not an iterator or None")
        return found

    def self_test(self, context: SelfTestContext) -> tuple[Check, ...] | None:
        if "self_test" not in self._hooks:
            return None
        found = self._call("self_test", context=context) or ()
        for item in found:
            demand(isinstance(item, Check), f"self_test returned a {type(item).__name__} among its items")
        return tuple(found)
