"""The wall between the engine and a plugin's code: what that raises, or broke, becomes a typed error.

Every call into a plugin happens inside `calling`, which knows what is running on which thread.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from types import TracebackType

from attrs import frozen

from ..contract.plugins import PluginRecord
from ..errors import (
    GenerationError,
    InsufficientMemoryError,
    MisuseError,
    MLXEngineError,
    PluginContractError,
    PluginCrashedError,
    PluginError,
    is_ctrl_c,
    out_of_memory,
)

log = logging.getLogger("mlxengine.plugins")


@frozen
class Running:
    """A plugin's hook that has not returned; ``since`` is a ``time.perf_counter`` reading."""

    record: PluginRecord
    hook: str
    since: float

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.since


_Entry = tuple["PluginRecord", str, float]
_running: dict[int, _Entry] = {}  # by thread; each thread touches its own entry only


def running(thread: threading.Thread | None) -> Running | None:
    """The plugin's hook that runs on a thread now."""
    found = None if thread is None else _running.get(thread.ident or 0)
    return None if found is None else Running(*found)


def enter(record: PluginRecord, hook: str, now: float) -> _Entry | None:
    """A hook begins on this thread; what it interrupts, for `leave`. Steps are many: `calling` costs more."""
    thread = threading.get_ident()
    before = _running.get(thread)
    _running[thread] = (record, hook, now)
    return before


def leave(before: _Entry | None) -> None:
    """The hook has returned."""
    if before is None:
        _running.pop(threading.get_ident(), None)
    else:
        _running[threading.get_ident()] = before


class calling:  # noqa: N801 - read as a statement: with calling(record, "generate"): ...
    """Around each call into a plugin: nothing but our own errors, and the user's Ctrl-C, comes out.

    A hook must not be able to end a thread of the engine, or the program, by what it raises: SystemExit,
    the exception of a native panic and GeneratorExit are its faults like any other.

    Args:
        typed: whether the hook may answer with an error of ours about what it was asked.

    Raises:
        PluginCrashedError: it raised something that is not one of ours.
        PluginContractError: it raised one of ours where there is nothing to refuse.
        InsufficientMemoryError: memory ran out in it.
    """

    __slots__ = ("_before", "_hook", "_record", "_typed")

    def __init__(self, record: PluginRecord, hook: str, *, typed: bool = False) -> None:
        self._typed = typed
        self._record = record
        self._hook = hook

    def __enter__(self) -> None:
        self._before = enter(self._record, self._hook, time.perf_counter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave(self._before)
        if error is None or is_ctrl_c(error):
            return
        record, hook = self._record, self._hook
        typed = translate(record, hook, error)
        if typed is error and not (self._typed or isinstance(error, PluginError)):
            typed = broken(record, hook, f"raised {type(error).__name__}: {error}")
        if typed is not error:
            raise typed from error


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


def stuck(found: Running | None, seconds: float) -> MLXEngineError:
    """The error for closing that could not wait any longer."""
    if found is None:
        return GenerationError(
            f"The engine's threads did not end within {seconds:g} s; they are left behind.",
            hint="Run with -v (or logging at DEBUG) to see what they do.",
        )
    return PluginContractError(
        f"{found.hook} of {found.record.where} has not returned for {found.seconds:.1f} s, and closing waits "
        f"for {seconds:g} s: its thread and the model's memory are left behind until it does.",
        plugin=found.record.name,
        distribution=found.record.distribution,
        hook=found.hook,
        hint="Report it to the plugin's author, or raise close_timeout where such a step is expected.",
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
