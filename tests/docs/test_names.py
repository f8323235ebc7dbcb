"""Public names are pinned and documented."""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import pkgutil
import re

import mlxengine
import pytest

from .blocks import ROOT

MODULES = [
    item.name
    for item in pkgutil.walk_packages(mlxengine.__path__, "mlxengine.")
    # a framework's own module cannot be imported where the framework is not installed
    if not re.search(
        r"\._|\.(cli|testing|integrations\.(langchain|llama_index|chroma|lancedb|mteb))\b", item.name
    )
]


@pytest.mark.parametrize("module", [*MODULES, "mlxengine.testing"])
def test_every_public_class_function_and_method_has_a_docstring(module: str) -> None:
    found = importlib.import_module(module)
    assert found.__doc__, module
    bare = []
    for key in getattr(found, "__all__", [item for item in vars(found) if not item.startswith("_")]):
        value = getattr(found, key)
        if getattr(value, "__module__", "").partition(".")[0] != "mlxengine":
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            bare += [] if inspect.getdoc(value) else [key]
        if inspect.isclass(value):
            bare += [
                f"{key}.{item}"
                for item, member in vars(value).items()
                if not item.startswith("_")
                and (inspect.isfunction(member) or isinstance(member, property))
                and not inspect.getdoc(member)
            ]
    assert bare == []


def test_the_public_names_of_the_package_are_pinned() -> None:
    pinned = (importlib.resources.files("tests.docs") / "public_names.txt").read_text().split()
    assert sorted(mlxengine.__all__) == pinned, (
        "a name came or went: update tests/docs/public_names.txt knowingly"
    )


def test_every_name_of_a_modules_all_is_there() -> None:
    for module in ["mlxengine", *MODULES]:
        found = importlib.import_module(module)
        assert [key for key in getattr(found, "__all__", []) if not hasattr(found, key)] == [], module


def test_every_public_name_and_the_whole_toolkit_is_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    modules = set(re.findall(r"^\.\. automodule:: (\S+)", text, re.MULTILINE))
    names = {name for module in modules for name in getattr(importlib.import_module(module), "__all__", ())}
    names |= set(re.findall(r"^\.\. auto(?:class|function):: \S+\.(\w+)", text, re.MULTILINE))
    classes = [name for name in mlxengine.__all__ if inspect.isclass(getattr(mlxengine, name))]
    assert [name for name in classes if name not in names] == []
    assert {name for name in MODULES if name.startswith("mlxengine.toolkit.")} <= modules


@pytest.mark.parametrize("handle", ["ModelHandle", "AsyncModelHandle"])
def test_what_every_handle_has_is_in_the_reference(handle: str) -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    assert f".. autoclass:: mlxengine.{handle}\n   :inherited-members:\n" in page
