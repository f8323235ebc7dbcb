"""The rooms of core lie in layers, and nothing imports upward: read from the code, lazy imports included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mlxengine

CORE = Path(mlxengine.__file__).parent

# Bottom up. What stands on one line may import what stands on it or below, except that
# the rooms of the kinds (BESIDE) do not import each other.
LAYERS = (
    "errors readonly _files _version _shown",
    "_units",
    "contract",
    "_config _hub_options memory health",
    "_scheduling _machine _hub _registry",
    "registry metrics streams",
    "_memory",
    "_engine",
    "handle",
    "text vectors pictures",
    "engine protocol hub diagnosis",
    "aio",
    "cli integrations testing toolkit",
    "__main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms.split()}
BESIDE = {"text", "vectors", "pictures"}

# Arrows that still run upward.
EXCEPTIONS = {
    ("contract.device", "_machine.detect"),  # `Device.detect`
}


def modules() -> dict[str, Path]:
    """Every module of core but the front door, by its name below the package."""
    paths = (path.relative_to(CORE).with_suffix("") for path in CORE.rglob("*.py"))
    names = {".".join(path.parts).removesuffix(".__init__"): CORE / path for path in paths}
    del names["__init__"]
    return names


def imports(name: str, source: str, package: bool, known: dict[str, Path]) -> Iterator[str]:
    """The modules of core that a module imports, anywhere in its code."""
    here = ["mlxengine", *name.split(".")]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                item.name.partition(".")[2] for item in node.names if item.name.startswith("mlxengine.")
            )
        if not isinstance(node, ast.ImportFrom):
            continue
        base = here[: len(here) - node.level + package] if node.level else []
        full = ".".join([*base, *([node.module] if node.module else [])])
        if full.partition(".")[0] != "mlxengine":
            continue
        module = full.partition(".")[2]
        for item in node.names:
            inner = f"{module}.{item.name}".strip(".")
            yield inner if inner in known else module


def arrows() -> set[tuple[str, str]]:
    """All (importing module, imported module) of core between different rooms."""
    known = modules()
    found = set()
    for name, stem in known.items():
        package = stem.name == "__init__"
        for other in imports(name, stem.with_suffix(".py").read_text(), package, known):
            if other and room(other) != room(name):
                found.add((name, other))
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


def upward(arrow: tuple[str, str]) -> bool:
    lower, upper = map(room, arrow)
    return FLOOR[upper] > FLOOR[lower] or {lower, upper} <= BESIDE


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in modules()} == set(FLOOR)


def test_nothing_imports_upward_and_the_kinds_do_not_import_each_other() -> None:
    assert {arrow for arrow in arrows() if upward(arrow)} == EXCEPTIONS


def test_the_picture_of_the_rooms_shows_these_layers() -> None:
    picture = Path(__file__).parents[2] / "docs/pictures/rooms.svg"
    shown = re.findall(r'<text x="32" [^>]*>([^<]*)</text>', picture.read_text())
    assert shown == [line for line in reversed(LAYERS) if line != "__main__"]


def test_lazy_imports_and_those_for_types_are_read_too() -> None:
    code = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..engine import InferenceEngine\n"
        "def f():\n    from ..text import handle\n    from .. import aio\n    import mlxengine.cli\n"
    )
    found = list(imports("contract.kinds", code, False, modules()))
    assert sorted(found) == ["aio", "cli", "engine", "text.handle"]
