"""Tools from Python files: the functions that a model may call where a person names a file of them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InvalidParameterError
from .tools import describe, name_of

_MODULE = "mlxengine_tool_file"


def tools_of(path: Path) -> tuple[Any, ...]:
    """Run a Python file, and take the functions that its ``TOOLS`` lists, else its public ones.

    Raises:
        InvalidParameterError: there is no such file, it cannot be run, lists no tool, or lists one that
            cannot be described to a model; the message names the file, and the line where there is one.
    """
    module = _run(path)
    listed = getattr(module, "TOOLS", None)
    if listed is None:
        listed = [
            value
            for name, value in vars(module).items()
            if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == _MODULE
        ]
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise InvalidParameterError(
            f"{path}: TOOLS is a list of functions, found {type(listed).__name__}.",
            hint="Write TOOLS = [function, …], or leave it out: then all public functions are tools.",
        )
    if not listed:
        raise InvalidParameterError(f"{path} has no tools.", hint=_HINT)
    for tool in listed:
        if not callable(tool):
            raise InvalidParameterError(f"{path}: TOOLS holds {tool!r}, which is no function.", hint=_HINT)
        try:
            describe(tool)
        except (InvalidParameterError, ValueError) as error:
            code = getattr(tool, "__code__", None)
            where = f", line {code.co_firstlineno}" if code else ""
            hint = getattr(error, "hint", None)
            raise InvalidParameterError(f"{path}{where}: {_message(error)}", hint=hint) from error
    return tuple(listed)


def together(sources: Sequence[tuple[str, Sequence[Any]]]) -> tuple[Any, ...]:
    """The tools of several sources, each with what it is called, as one list.

    Raises:
        InvalidParameterError: two tools have one name.
    """
    owners: dict[str, str] = {}
    found = []
    for source, tools in sources:
        for tool in tools:
            name = name_of(tool)
            if name in owners:
                raise InvalidParameterError(
                    f"Two tools are called {name!r}: one of {owners[name]} and one of {source}.",
                    hint="A model calls tools by their names: leave one of them out, or rename it.",
                )
            owners[name] = source
            found.append(tool)
    return tuple(found)


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidParameterError(f"There is no file {path}.", hint="--tools takes a Python file.")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise InvalidParameterError(
            f"{path} is no Python file.", hint="--tools takes a file that ends in .py."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    folder = str(path.parent.absolute())
    if folder not in sys.path:
        sys.path.append(folder)  # last: what lies beside the file hides nothing that is installed
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InvalidParameterError(
            f"{path}{_line(path, error)}: {type(error).__name__}: {_message(error)}.", hint="Mend the file."
        ) from error
    return module


def _line(path: Path, error: BaseException) -> str:
    file = str(path.absolute())  # as the import system names it
    if isinstance(error, SyntaxError) and error.filename == file:
        return f", line {error.lineno}"
    lines = [item.lineno for item in traceback.extract_tb(error.__traceback__) if item.filename == file]
    return f", line {lines[-1]}" if lines else ""


def _message(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return str(error.msg)
    return str(getattr(error, "message", error)).rstrip(".")


_HINT = "Write functions with annotations; the first paragraph of a docstring tells a model what one does."

__all__ = ["together", "tools_of"]
