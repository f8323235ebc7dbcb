"""Chat templates, rendered where they can do no harm: in a process that is bounded in time and memory.

A template is a program that comes with a model. jinja2's sandbox keeps it from Python's insides, but not from
taking all of the time and memory there is, and a rendering on a thread of the engine cannot be stopped. So
`bind` puts a `ChatTemplate` in the place of a tokenizer's ``apply_chat_template``, and whatever renders,
libraries included, comes through it.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedInputError

SECONDS = 5.0
MEMORY = 1 << 30
CHARACTERS = 16 << 20
_PROGRAM = Path(__file__).with_name("_template_process.py")


class TemplateBoundError(UnsupportedInputError):
    """A chat template took more time, memory or text than it may."""


class ChatTemplate:
    """One template, rendered by a process that is started when it is needed and ended when it is not.

    Safe from any thread; one rendering at a time.

    Args:
        source: the template.
        seconds, memory, characters: most of each for one rendering (memory in bytes, of the process).
    """

    def __init__(
        self, source: str, *, seconds: float = SECONDS, memory: int = MEMORY, characters: int = CHARACTERS
    ) -> None:
        self._source = source
        self._seconds = seconds
        self._memory = memory
        self._characters = characters
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for the given variables, which are plain JSON values.

        Raises:
            TemplateBoundError: it takes too long, too much memory, or writes too much.
            UnsupportedInputError: the template refuses, or has a mistake.
        """
        with self._lock:
            if self._process is None or not self._process.alive:
                self._process = self._start()
            try:
                answer = self._process.ask(variables, self._seconds)
            except BaseException as error:
                self._process.end()
                self._process = None
                if isinstance(error, TimeoutError):
                    raise self._bounded(f"{self._seconds:g} seconds") from error
                if isinstance(error, OSError):
                    raise self._bounded(f"{self._memory >> 20} MiB of memory") from error
                raise
        if answer.get("bound") == "memory":
            raise self._bounded(f"{self._memory >> 20} MiB of memory")
        if answer.get("bound"):
            raise self._bounded(f"{self._characters} characters")
        if "error" in answer:
            raise UnsupportedInputError(str(answer["error"]))
        return str(answer["text"])

    def close(self) -> None:
        """End the process; a later rendering starts another."""
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None

    def _start(self) -> _Process:
        found = _Process()
        settings = {"memory": self._memory, "characters": self._characters, "path": sys.path}
        found.send({**settings, "template": self._source}, time.monotonic() + self._seconds)
        return found

    def _bounded(self, what: str) -> TemplateBoundError:
        return TemplateBoundError(
            f"The model's chat template takes more than {what} for this conversation.",
            hint="Give another with ModelConfiguration(chat_template=…), or send TextRequest(prompt=…).",
        )


class _Process:
    """The pipe to one process. It ends when the pipe closes, so none outlives its engine."""

    def __init__(self) -> None:
        # -I and -S: nothing of the user's is imported before the path is set; the environment has no secrets.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ") if name in os.environ},
            start_new_session=True,  # Ctrl-C is the engine's matter
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self.end = weakref.finalize(self, _end, self._process)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, variables: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send variables, wait for the answer.

        Raises:
            TimeoutError: it does not come in time.
            OSError: the process ended.
        """
        until = time.monotonic() + seconds
        self.send(variables, until)
        (length,) = struct.unpack("<Q", self._receive(8, until))
        found: dict[str, Any] = json.loads(self._receive(length, until))
        return found

    def send(self, message: Mapping[str, Any], until: float) -> None:
        data = json.dumps(message).encode()
        view = memoryview(struct.pack("<Q", len(data)) + data)
        while view:
            if _ready(self._to, select.POLLOUT, until):
                view = view[os.write(self._to, view[: 1 << 20]) :]

    def _receive(self, count: int, until: float) -> bytearray:
        found = bytearray()
        while len(found) < count:
            if _ready(self._from, select.POLLIN, until):
                piece = os.read(self._from, min(count - len(found), 1 << 20))
                if not piece:
                    raise BrokenPipeError("the process ended")
                found += piece
        return found


def _ready(descriptor: int, event: int, until: float) -> bool:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    found = select.poll()  # unlike select, it takes descriptors beyond 1,023
    found.register(descriptor, event)
    return bool(found.poll(left * 1000))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()


def bind(owner: Any, template: Callable[[Any], str | None] | None = None) -> Callable[[], None]:
    """Let a tokenizer (or processor) of transformers render its chat template within bounds from now on.

    Tokenizers that render in code of their own keep it: that is a library's code, not the model's.

    Args:
        owner: its ``apply_chat_template`` is replaced, for texts; it gives no tokens any more.
        template: the source for the given tools; by default the owner's choice.

    Returns:
        A function that ends what was started.
    """
    rendered: dict[str, ChatTemplate] = {}
    lock = threading.Lock()

    def apply(
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **variables: Any,
    ) -> str:
        if tokenize or return_dict:
            raise ValueError("this chat template gives text only")
        source = chat_template or (template(tools) if template else owner.get_chat_template(None, tools))
        if source is None:
            raise ValueError("the chat_template is not set")
        with lock:
            found = rendered.setdefault(source, ChatTemplate(source))
        messages = [
            {name: value for name, value in item.items() if value is not None} for item in conversation
        ]
        words = getattr(owner, "tokenizer", owner).special_tokens_map
        return found.render(
            {
                **words,
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **variables,
            }
        )

    def close() -> None:
        for found in rendered.values():
            found.close()

    if _renders_as_transformers(owner):
        owner.apply_chat_template = apply
    return close


def _renders_as_transformers(owner: Any) -> bool:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    own = getattr(type(owner), "apply_chat_template", None)
    return own in (PreTrainedTokenizerBase.apply_chat_template, ProcessorMixin.apply_chat_template)


__all__ = ["ChatTemplate", "TemplateBoundError", "bind"]
