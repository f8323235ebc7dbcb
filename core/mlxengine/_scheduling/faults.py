"""What a plugin's hook raised, or broke, as a typed error that names the plugin."""

from __future__ import annotations

import logging
import traceback

from ..contract.plugins import PluginRecord
from ..errors import (
    InsufficientMemoryError,
    MisuseError,
    MLXEngineError,
    PluginContractError,
    PluginCrashedError,
    out_of_memory,
)

log = logging.getLogger("mlxengine.plugins")


def crash(record: PluginRecord, hook: str, error: BaseException) -> PluginCrashedError:
    """The error for an exception that is not one of ours."""
    return PluginCrashedError(
        f"The plugin {record.where} failed in {hook}: {type(error).__name__}: {error}",
        plugin=record.name,
        distribution=record.distribution,
        hook=hook,
        hint="Run with -v (or logging at DEBUG) for the traceback, and report it to the plugin's author.",
    )


def broken(record: PluginRecord, hook: str, what: str) -> PluginContractError:
    """The error for a hook that returned or yielded what the specs do not allow."""
    return PluginContractError(
        f"{hook} of {record.where} {what}.",
        plugin=record.name,
        distribution=record.distribution,
        hook=hook,
        hint="Report it to the plugin's author; the conformance kit finds it.",
    )


def translate(record: PluginRecord, hook: str, error: BaseException) -> BaseException:
    """What a caller gets for an exception of a step: ours as they are, others typed, with their cause."""
    if isinstance(error, MLXEngineError | MisuseError):
        return error
    log.debug("%s of %s raised", hook, record.where, exc_info=error)
    typed: BaseException = crash(record, hook, error)
    if out_of_memory(error):
        traceback.clear_frames(error.__traceback__)  # they hold what took the memory
        typed = InsufficientMemoryError(
            f"{hook} of {record.where} ran out of memory: {error}.",
            hint="Shorten the prompt, lower max_tokens, or close other models.",
        )
    typed.__cause__ = error
    return typed
