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

from attrs import field, frozen

from ..errors import UnsupportedInputError

SECONDS = 5.0
MEMORY = 1 << 30
CHARACTERS = 16 << 20
_PROGRAM = Path(__file__).with_name("_template_process.py")


class TemplateBoundError(UnsupportedInputError):
    """A chat template took more time, memory or text than it may."""


@frozen(kw_only=True)
class Reads:
    """What a template reads: ``variables`` that it is given, and ``attributes``, names within values."""

    variables: frozenset[str]
    attributes: frozenset[str]


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
        self._reads: Reads | None = None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for the given variables, which are plain JSON values.

        Raises:
            TemplateBoundError: it takes too long, too much memory, or writes too much.
            UnsupportedInputError: the template refuses, or has a mistake.
        """
        return str(self._ask(variables)["text"])

    def reads(self) -> Reads:
        """The names that the template reads; found once.

        Raises:
            TemplateBoundError: as `render`.
            UnsupportedInputError: the template has a mistake.
        """
        if self._reads is None:
            found = self._ask(None)
            self._reads = Reads(
                variables=frozenset(found["variables"]), attributes=frozenset(found["attributes"])
            )
        return self._reads

    def _ask(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._lock:
            if self._process is None or not self._process.alive:
                self._process = self._start()
            try:
                answer = self._process.ask({"variables": variables}, self._seconds)
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
        return answer

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

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send a message, wait for the answer.

        Raises:
            TimeoutError: it does not come in time.
            OSError: the process ended.
        """
        until = time.monotonic() + seconds
        self.send(message, until)
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


@frozen(kw_only=True)
class Conversation:
    """What a template is given: messages and tools as plain JSON values, and further variables by name."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    variables: Mapping[str, Any] = field(factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of transformers' ``apply_chat_template`` besides the messages, for a text."""
        return {
            **self.variables,
            "tools": self.tools,
            "add_generation_prompt": self.add_generation_prompt,
            "tokenize": False,
        }


class OwnTemplate:
    """The chat template of a tokenizer (or processor) of transformers; `bind` makes one.

    ``bounded``: it is one, and no code in its place.
    """

    def __init__(self, owner: Any, choose: Callable[[Any], str | None] | None) -> None:
        self._owner = owner
        self._choose = choose
        self._made: dict[str, ChatTemplate] = {}
        self._lock = threading.Lock()
        self.bounded = _renders_as_transformers(owner)
        if self.bounded:
            owner.apply_chat_template = self.apply

    def apply(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **variables: Any,
    ) -> str:
        """The conversation as the template writes it; the arguments are those of transformers."""
        if tokenize or return_dict:
            raise ValueError("this chat template gives text only")
        found = self._template(chat_template or self._source(tools))
        messages = [
            {name: value for name, value in item.items() if value is not None} for item in conversation
        ]
        return found.render(
            {
                **self.words,
                "messages": messages,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **variables,
            }
        )

    def write(self, conversation: Conversation) -> str:
        """The conversation as the template writes it, or as its owner's own code does."""
        return str(self._owner.apply_chat_template(conversation.messages, **conversation.options))

    def reads(self, tools: Sequence[Mapping[str, Any]] | None) -> Reads | None:
        """The names that the template reads; ``None`` where nobody can tell, of code.

        Raises:
            UnsupportedInputError: there is no template, or it has a mistake.
        """
        return self._template(self._source(tools)).reads() if self.bounded else None

    @property
    def words(self) -> Mapping[str, Any]:
        """The special tokens, which templates read by their names."""
        return dict(getattr(self._owner, "tokenizer", self._owner).special_tokens_map)

    @property
    def exists(self) -> bool:
        """Whether there is a template, or code in its place."""
        if not self.bounded:
            return True
        chosen = self._choose(None) if self._choose else getattr(self._owner, "chat_template", None)
        return chosen is not None

    def close(self) -> None:
        """End what was started."""
        for found in self._made.values():
            found.close()

    def _source(self, tools: Any) -> str | None:
        if self._choose is not None:
            return self._choose(tools)
        found: str | None = self._owner.get_chat_template(None, tools)
        return found

    def _template(self, source: str | None) -> ChatTemplate:
        if source is None:
            raise ValueError("the chat_template is not set")
        with self._lock:
            return self._made.setdefault(source, ChatTemplate(source))


def bind(owner: Any, template: Callable[[Any], str | None] | None = None) -> OwnTemplate:
    """Let a tokenizer (or processor) of transformers render its chat template within bounds from now on.

    Tokenizers that render in code of their own keep it: that is a library's code, not the model's.

    Args:
        owner: its ``apply_chat_template`` is replaced, for texts; it gives no tokens any more.
        template: the source for the given tools; by default the owner's choice.
    """
    return OwnTemplate(owner, template)


def _renders_as_transformers(owner: Any) -> bool:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    own = getattr(type(owner), "apply_chat_template", None)
    return own in (PreTrainedTokenizerBase.apply_chat_template, ProcessorMixin.apply_chat_template)


__all__ = ["ChatTemplate", "Conversation", "OwnTemplate", "Reads", "TemplateBoundError", "bind"]
