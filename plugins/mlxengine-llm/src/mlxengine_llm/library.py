"""What mlx-lm implements, read from its files: to import it would take seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxengine.toolkit.estimate import architectures
from mlxengine.toolkit.source import constant


def module_of(config: Mapping[str, Any]) -> str | None:
    """The name of mlx-lm's module for a configuration, or ``None``; the module is not imported."""
    folder = _library()
    kind = config.get("model_type")
    if folder is None or not isinstance(kind, str):
        return None
    plain, special = _remapping()
    for architecture in architectures(config):
        if (kind, architecture) in special:
            kind = special[kind, architecture]
            break
    else:
        kind = plain.get(kind, kind)
    return kind if _implements(kind) else None


@functools.cache
def _library() -> Path | None:
    spec = importlib.util.find_spec("mlx_lm")
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _implements(name: str) -> bool:
    """Whether mlx-lm has a module for a model of this name."""
    return "ModelArgs" in source(name)


@functools.cache
def source(name: str) -> str:
    """The text of mlx-lm's module of this name, which is not imported; empty without one."""
    folder = _library()
    if folder is None or not re.fullmatch(r"[\w.-]{1,100}", name):
        return ""
    file = folder / "models" / f"{name}.py"
    return file.read_text("utf-8", "replace") if file.is_file() else ""


@functools.cache
def demanded(module: str) -> tuple[str, ...]:
    """Packages without which mlx-lm's module of this name ends the program when it is imported."""
    if "exit(" not in source(module):
        return ()
    tries = (node for node in ast.parse(source(module)).body if isinstance(node, ast.Try))
    return tuple(
        name.name
        for node in tries
        if any("exit" in ast.unparse(handler) for handler in node.handlers)
        for statement in node.body
        if isinstance(statement, ast.Import)
        for name in statement.names
    )


def tokenizer_defaults(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a family's chats are written, for checkpoints that do not say it; ``None`` for most."""
    folder, module = _library(), module_of(config)
    if folder is None or module is None:
        return None
    found = constant(folder / "models" / f"{module}.py", "TOKENIZER_DEFAULTS")
    return found if isinstance(found, dict) else None


@functools.cache
def _remapping() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """mlx-lm's own tables of aliases."""
    folder = _library()
    if folder is None:
        return {}, {}
    names = ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING")
    plain, special = (constant(folder / "utils.py", name) or {} for name in names)
    return plain, special


__all__ = ["demanded", "module_of", "source", "tokenizer_defaults"]
