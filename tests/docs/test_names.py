"""Public names are pinned and documented."""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import pkgutil
import re

import mlxengine
import pytest

MODULES = [
    item.name
    for item in pkgutil.walk_packages(mlxengine.__path__, "mlxengine.")
    if not re.search(r"\._|\.(cli|testing|toolkit)\b", item.name)
]


@pytest.mark.parametrize("module", [*MODULES, "mlxengine.testing", "mlxengine.toolkit.checkpoint"])
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
                if not item.startswith("_") and inspect.isfunction(member) and not inspect.getdoc(member)
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
