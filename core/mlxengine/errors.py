"""Every error that the engine raises on purpose.

::

    MLXEngineError
    ├ ConfigurationError   InvalidModelRefError InvalidParameterError UnknownFeatureError
    │                      FeatureUnavailableError
    ├ ResolutionError      ModelNotFoundError GatedModelError HubAuthError HubUnavailableError
    │                      OfflineError NoPluginForModelError AmbiguousModelError
    ├ DownloadError        InsufficientDiskError CorruptFileError RateLimitedError
    ├ PluginError          PluginLoadError PluginContractError PluginCrashedError
    ├ LoadError            UnsupportedArchitectureError IncompatibleWeightsError
    │                      InsufficientMemoryError RemoteCodeRefusedError BackendUnavailableError
    └ GenerationError      PromptTooLongError UnsupportedInputError CancelledError
                           QueueFullError WaitTimeoutError RunTimeoutError
                           ToolError ToolServerError RankLostError
    MisuseError(RuntimeError)  StreamConsumedError ModelClosedError EngineClosedError

A message says what was asked and what was found; ``hint`` says what to do next. ``recoverable``
tells whether trying the same thing again can help. A foreign exception arrives as ``__cause__``.
Characters of a message that a terminal would obey, or that nobody can see, stand there as their escapes.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from ._shown import shown

_MEMORY = ("[malloc", "malloc] attempting", "out of memory", "insufficient memory", "unable to allocate")


class MLXEngineError(Exception):
    """Base of every error that a request, a load or a download can end with.

    Args:
        message: what was asked and what was found.
        hint: what the reader should do next, as an imperative sentence.
        recoverable: whether the same call may succeed later; ``None`` keeps the class's default.
    """

    recoverable: bool = False

    def __init__(self, message: str, *, hint: str | None = None, recoverable: bool | None = None) -> None:
        self.message = shown(message)
        super().__init__(self.message)
        self.hint = None if hint is None else shown(hint)
        if recoverable is not None:
            self.recoverable = recoverable

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is made again from its positional arguments alone; what is named is in its state.
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[MLXEngineError], arguments: tuple[object, ...]) -> MLXEngineError:
    return kind.__new__(kind, *arguments)


class ConfigurationError(MLXEngineError):
    """What the caller configured cannot be used."""


class InvalidModelRefError(ConfigurationError):
    """A model reference is neither ``org/name[@revision]``, nor a path, nor ``auto:kind``."""


class InvalidParameterError(ConfigurationError):
    """A parameter is unknown, has the wrong type, or is outside its range."""


class UnknownFeatureError(ConfigurationError):
    """No installed plugin provides a feature of this name."""


class FeatureUnavailableError(ConfigurationError):
    """A feature was asked for that is disabled, or that this device or model does not have."""


class ResolutionError(MLXEngineError):
    """The model that was named could not be turned into one that can be loaded."""


class ModelNotFoundError(ResolutionError):
    """No such repository, revision, file or folder."""


class GatedModelError(ResolutionError):
    """The repository's terms must be accepted first."""


class HubAuthError(ResolutionError):
    """The hub refused the token, or wants one."""


class HubUnavailableError(ResolutionError):
    """The hub could not be reached or keeps failing."""

    recoverable = True


class OfflineError(ResolutionError):
    """The model is not complete on this machine and the network is off."""


class NoPluginForModelError(ResolutionError):
    """No installed plugin serves this model."""


class AmbiguousModelError(ResolutionError):
    """Two plugins claim the model equally well; the caller has to name one."""


class DownloadError(MLXEngineError):
    """A download did not complete; what has arrived is kept and resumed."""

    recoverable = True


class InsufficientDiskError(DownloadError):
    """The files do not fit on the disk."""

    recoverable = False


class CorruptFileError(DownloadError):
    """A file's content is not what the hub, or its own header, says it is."""


class RateLimitedError(DownloadError):
    """The hub asked us to slow down for longer than we are willing to wait."""


class PluginError(MLXEngineError):
    """A plugin did something wrong.

    Args:
        plugin: the entry-point name.
        distribution: the distribution that provides it, if it is known.
        hook: the hook that was being called, if one was.
    """

    def __init__(
        self,
        message: str,
        *,
        plugin: str,
        distribution: str | None = None,
        hook: str | None = None,
        hint: str | None = None,
        recoverable: bool | None = None,
    ) -> None:
        super().__init__(message, hint=hint, recoverable=recoverable)
        self.plugin = plugin
        self.distribution = distribution
        self.hook = hook


class PluginLoadError(PluginError):
    """A plugin could not be imported or registered; it is set aside, the rest works."""


class PluginContractError(PluginError):
    """A hook returned, yielded or declared something that the hook specs do not allow."""


class PluginCrashedError(PluginError):
    """A hook raised an exception that is not one of ours."""


class LoadError(MLXEngineError):
    """The model's files are there, but the model could not be loaded."""


class UnsupportedArchitectureError(LoadError):
    """No library underneath implements this architecture."""


class IncompatibleWeightsError(LoadError):
    """Tensors are missing, unexpected or of the wrong shape."""


class InsufficientMemoryError(LoadError):
    """The model, or what a request needs, does not fit in the memory budget."""


class RemoteCodeRefusedError(LoadError):
    """The repository wants to run its own Python code and that was not allowed."""


class BackendUnavailableError(LoadError):
    """MLX, or a back end of it, is missing on this machine."""


class GenerationError(MLXEngineError):
    """One request failed; every other request goes on."""


class PromptTooLongError(GenerationError):
    """The prompt does not fit in the model's context."""


class UnsupportedInputError(GenerationError):
    """The model cannot take this kind of input."""


class CancelledError(GenerationError):
    """The request was cancelled before it finished."""


class QueueFullError(GenerationError):
    """As many requests wait for the model as may; this one was not taken on."""

    recoverable = True


class WaitTimeoutError(GenerationError):
    """The request's turn did not come within the time that it could wait."""

    recoverable = True


class RunTimeoutError(GenerationError):
    """The request ran for as long as it might, and was ended."""


class ToolError(GenerationError):
    """A tool could not do what it was called for; a session shows the model why."""


class ToolServerError(ToolError):
    """A server of tools could not be started, or has ended."""


class RankLostError(GenerationError):
    """One of the processes that a model is spread over has died, or does not go on; all were ended."""

    recoverable = True


class MisuseError(RuntimeError):
    """The caller used an object in a way that can never work."""


class StreamConsumedError(MisuseError):
    """A stream was iterated a second time."""


class ModelClosedError(MisuseError):
    """The model handle was closed."""


class EngineClosedError(MisuseError):
    """The engine was closed."""


def is_ctrl_c(error: BaseException) -> bool:
    """Whether it is the user's own interrupt, and not a KeyboardInterrupt that some code raised by itself.

    Python delivers signals on the main thread alone, between two instructions: there is no ``raise`` where
    the traceback ends, or it is that of a handler that the program installed.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    if error.__context__ is not None and is_ctrl_c(error.__context__):
        return True  # caught, and said again
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    from opcode import opmap

    code = trace.tb_frame.f_code
    handler = signal.getsignal(signal.SIGINT)
    handler = getattr(handler, "func", handler)  # asyncio's is a partial
    said = code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]
    return not said or getattr(handler, "__code__", None) is code


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception says that memory could not be had: Python's, mlx's, or ours about one of them."""
    if isinstance(error, InsufficientMemoryError):
        return out_of_memory(error.__cause__)  # a refusal by the budget has no such cause
    if isinstance(error, MLXEngineError):
        return False
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _MEMORY)


__all__ = [
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, Exception)
]
