"""What is offered to threads is offered to asyncio too, under the same names, with the same signatures."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import pytest
from mlxengine import (
    AsyncEmbeddingHandle,
    AsyncEventStream,
    AsyncImageHandle,
    AsyncInferenceEngine,
    AsyncModelHandle,
    AsyncSession,
    AsyncTextHandle,
    EmbeddingHandle,
    EventStream,
    ImageHandle,
    InferenceEngine,
    ModelHandle,
    Session,
    TextHandle,
)
from mlxengine.contract.kinds import own_kinds
from mlxengine.text.session import AsyncSessionStream, SessionStream

TWINS: dict[type, type] = {
    InferenceEngine: AsyncInferenceEngine,
    ModelHandle: AsyncModelHandle,
    TextHandle: AsyncTextHandle,
    EmbeddingHandle: AsyncEmbeddingHandle,
    ImageHandle: AsyncImageHandle,
    Session: AsyncSession,
    EventStream: AsyncEventStream,
    SessionStream: AsyncSessionStream,
}
each_pair = pytest.mark.parametrize(("plain", "twin"), TWINS.items(), ids=lambda kind: kind.__name__)

# What only one of the two has, and why.
ALONE: dict[type, str] = {
    # These never wait: `AsyncInferenceEngine.sync` has them.
    InferenceEngine: "plugins features kinds registry device models loads mock closed register status "
    "metrics health",
    AsyncInferenceEngine: "sync",
    # asyncio's own name for giving up an iterator, which `contextlib.aclosing` calls.
    EventStream: "close",
    AsyncEventStream: "aclose",
    SessionStream: "close",
    AsyncSessionStream: "aclose",
}

# What never waits is a plain function in both; all else is a coroutine function for asyncio.
AT_ONCE = {
    *("pin", "keep", "cancel", "arrived"),
    *("stream", "session"),  # what they give is waited for
    *("undo", "clear", "save", "restore"),  # a session's own, in memory or one small file
    *("ModelHandle.explain", "TextHandle.explain", "EmbeddingHandle.explain", "ImageHandle.explain"),
}

# Arguments that differ, and why: an iterator of texts may be asynchronous as well.
WIDER = {"EmbeddingHandle.embed": ("Iterator[Input]", "Iterator[Input] | AsyncIterator[Input]")}

NAMES = {plain.__name__: twin.__name__ for plain, twin in TWINS.items()} | {"Iterator": "AsyncIterator"}


def public(kind: type) -> dict[str, Any]:
    """The public members by name."""
    names = {name for name in dir(kind) if not name.startswith("_")}
    return {name: inspect.getattr_static(kind, name) for name in names}


def alone(kind: type) -> set[str]:
    return set(ALONE.get(kind, "").split())


def functions(kind: type) -> dict[str, Any]:
    """The public methods and the constructor, by name; static and class methods unwrapped."""
    found = {name: getattr(member, "__func__", member) for name, member in public(kind).items()}
    methods = {name: member for name, member in found.items() if inspect.isfunction(member)}
    return {**methods, "__init__": kind.__init__}  # type: ignore[misc]


def signatures(function: Any) -> list[str]:
    """How a function may be called: its overloads, and itself."""
    return [str(inspect.signature(item)) for item in (*typing.get_overloads(function), function)]


def for_asyncio(where: str, signature: str) -> str:
    """How a signature has to be written for asyncio."""
    arguments, arrow, result = signature.rpartition(" -> ")
    arguments = arguments.replace(*WIDER.get(where, ("", "")))
    for name, other in NAMES.items():
        result = re.sub(rf"\b{name}\b", other, result)
    return arguments + arrow + result


def test_every_kind_of_core_has_its_pair() -> None:
    for kind in own_kinds():
        assert TWINS[kind.find("handle")] is kind.find("async_handle"), kind.name


@each_pair
def test_both_have_the_same_public_members_but_for_those_that_are_meant(plain: type, twin: type) -> None:
    assert set(public(plain)) - alone(plain) == set(public(twin)) - alone(twin)
    assert alone(plain) <= set(public(plain))


@each_pair
def test_both_are_called_in_the_same_way(plain: type, twin: type) -> None:
    others = functions(twin)
    for name, function in functions(plain).items():
        if name not in alone(plain) and others[name] is not function:
            wanted = [for_asyncio(f"{plain.__name__}.{name}", item) for item in signatures(function)]
            assert signatures(others[name]) == wanted, name


@each_pair
def test_for_asyncio_all_that_waits_is_a_coroutine_function(plain: type, twin: type) -> None:
    for name, function in functions(twin).items():
        if name not in {"__init__", "aclose"}:
            at_once = {name, f"{plain.__name__}.{name}"} & AT_ONCE
            assert inspect.iscoroutinefunction(function) is not bool(at_once), name


@each_pair
def test_neither_is_explained_by_the_other_alone(plain: type, twin: type) -> None:
    for kind in (plain, twin):
        for name, member in {"": kind, **functions(kind)}.items():
            if name != "__init__":
                said = inspect.getdoc(member) or ""
                assert not re.fullmatch(r"(The same\b.*|See `.*`\.)?", said), f"{kind.__name__}.{name}"
