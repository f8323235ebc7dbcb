"""What a library raises while it builds a model, said by the field or the tensor that is at fault."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlxengine.errors import IncompatibleWeightsError, MLXEngineError, out_of_memory

from ._checkpoint import SECTIONS

_PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@contextlib.contextmanager
def naming_fields(kind: str, module: Any, config: Mapping[str, Any]) -> Iterator[None]:
    """Errors within are about ``config.json``.

    Raises:
        IncompatibleWeightsError: it names the fields that are missing or of another type than mlx-vlm's
            ``module`` says; without any, what the library said.
    """
    with _raising(
        lambda error: (
            f"config.json does not describe a model of mlx-vlm's {kind}: "
            f"{'; '.join(faults(module, config)[:5]) or _said(error)}"
        ),
        "Compare it with that of the original repository, or use a conversion of the model for mlx.",
    ):
        yield


@contextlib.contextmanager
def naming_tensors(kind: str) -> Iterator[None]:
    """Errors within are about the weights: the files are whole, and hold another model's tensors.

    Raises:
        IncompatibleWeightsError: with the names of tensors that the library gave.
    """
    with _raising(
        lambda error: (
            f"The weights are not those of mlx-vlm's {kind} as config.json describes it: {_said(error)}"
        ),
        "The files are whole: use a conversion of the model for mlx, or the config.json that came with them.",
    ):
        yield


@contextlib.contextmanager
def _raising(said: Callable[[Exception], str], hint: str) -> Iterator[None]:
    try:
        yield
    except (MLXEngineError, ImportError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise IncompatibleWeightsError(f"{said(error).rstrip('.')}.", hint=hint) from error


def faults(module: Any, config: Mapping[str, Any]) -> list[str]:
    """The fields of a configuration that are missing or of a wrong type, by the library's own classes."""
    found: list[str] = []
    for section, name in (("", "ModelConfig"), *SECTIONS.items()):
        made, given = getattr(module, name, None), config.get(section) if section else config
        if not dataclasses.is_dataclass(made):
            continue
        if not isinstance(given, Mapping):
            found += [f"{section} is {_shown(given)} and no object"] if given is not None else []
            continue
        hints = _hints(made)
        for field in dataclasses.fields(made):
            where = f"{section}.{field.name}" if section else field.name
            if field.name in SECTIONS:
                continue
            if field.name not in given:
                if field.default is field.default_factory is dataclasses.MISSING:
                    found.append(f"{where} is missing")
            elif wrong := _wrong(hints.get(field.name), given[field.name]):
                found.append(f"{where} is {_shown(given[field.name])} and not {wrong}")
    return found


def _hints(made: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(made)
    except Exception:  # a name that the library itself does not define
        return {}


def _wrong(wanted: Any, value: Any) -> str | None:
    """What a value should have been, where the class says so in plain words."""
    if wanted not in _PLAIN:
        return None
    if wanted is bool:
        good = isinstance(value, bool)
    elif wanted is str:
        good = isinstance(value, str)
    else:
        good = isinstance(value, int | float) and (wanted is float or not isinstance(value, float))
    return None if good else _PLAIN[wanted]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _said(error: Exception, limit: int = 400) -> str:
    text = " ".join(str(error).split())
    text = f"{type(error).__name__} {text}" if isinstance(error, KeyError) or not text else text
    return text if len(text) <= limit else f"{text[:limit]}…"


__all__ = ["faults", "naming_fields", "naming_tensors"]
