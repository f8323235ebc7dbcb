"""From a text request to token ids: written once, for every model that answers in text.

A back end makes one `Prompts` for each loaded model, out of a tokenizer of transformers, and hands requests
to `Prompts.serve`, which prepares them beside the device. What stands for pictures and sound, in messages and
among tokens, is the back end's own matter: its `Parts`. mlx is not needed here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen

from ..contract.events import Event, Finished
from ..errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from ..readonly import thaw
from ..text.messages import Part
from ..text.outputs import Prepared
from ..text.requests import TextRequest
from .aside import Aside
from .plain_text import Markers, most_characters, unused, with_marks
from .templates import Conversation, Reads, TemplateBoundError, bind
from .turns import (
    REASONING,
    continued,
    forms,
    leaves_out,
    says_nothing,
    shows_values,
    text_of,
    tools_of,
    turns,
)

_AT_ONCE = 1 << 14  # characters that are encoded, or ids that are checked, in about a millisecond
_OWN = ("messages", "tools", "add_generation_prompt")
_SWITCHES = {"thinking": ("enable_thinking", "thinking"), "reasoning_effort": ("reasoning_effort",)}
_Messages = list[dict[str, Any]]


class Template(Protocol):
    """What writes conversations; `mlxengine.toolkit.templates.bind` gives that of a tokenizer."""

    @property
    def exists(self) -> bool:
        """Whether there is one."""

    @property
    def words(self) -> Mapping[str, Any]:
        """The variables that the tokenizer gives it."""

    def reads(self, tools: Sequence[Mapping[str, Any]] | None) -> Reads | None:
        """The names that it reads for the given tools; ``None`` where nobody can tell."""

    def write(self, conversation: Conversation) -> str:
        """The text of a conversation; raises what it likes."""

    def close(self) -> None:
        """End what was started."""


class Parts:
    """What stands for those parts of a request that are no text. This one, for models of text, takes none."""

    @property
    def listed(self) -> bool:
        """Whether the template gets content as a list of parts."""
        return False

    def shown(self, part: Part) -> list[dict[str, Any]]:
        """The entries of a message's content for a part; called in the order of the conversation.

        Raises:
            UnsupportedInputError: the model does not take it.
        """
        kind = type(part).__name__.removesuffix("Part").lower()
        raise UnsupportedInputError(
            f"This model takes text only, found {kind}.", hint="Choose a vision-language model."
        )

    def placed(self, text: str) -> bool:
        """Whether a rendered text has a place for everything that was shown."""
        del text
        return True

    def check(self, ids: Sequence[int]) -> None:
        """Look at token ids that were given in place of a text.

        Raises:
            UnsupportedInputError: some stand for what is not there.
        """

    def encode(self, prompts: Prompts, text: str, mark: str, *, raw: bool) -> list[int]:
        """Token ids of a text, see `Markers.encode`; a ``raw`` one no template wrote."""
        return prompts.markers.encode(text, mark, add_special_tokens=raw and not prompts.begins(text))


@frozen(kw_only=True)
class Prompt:
    """A request's token ids, and its text where it has one."""

    ids: list[int]
    text: str | None = None


class Prompts:
    """Makes token ids of requests; safe from any thread.

    Args:
        tokenizer: of transformers.
        name: the model's, for errors.
        context: longest context in tokens, or ``None``.
        template: what writes conversations; by default the tokenizer's own chat template, within bounds.
        source: the template's text, by which structure is told from words; the tokenizer's if left out.
        words: further texts that mean something, see `Markers`.
        reasons: whether the model can reason; one that cannot may be told not to, whatever its template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        context: int | None = None,
        template: Template | None = None,
        source: str | None = None,
        words: Iterable[str] = (),
        reasons: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._reasons = reasons
        self._name = name
        self._context = context
        self._template: Template = template or bind(tokenizer)
        own = getattr(tokenizer, "chat_template", None)
        self.markers = Markers(tokenizer, source or str(own or ""), words)
        self._most = None if context is None else most_characters(tokenizer, context)
        self._aside = Aside()

    def serve(
        self,
        request: TextRequest,
        plain: bool,
        then: Callable[[list[int]], Iterator[Event | None]],
        parts: Parts | None = None,
    ) -> Iterator[Event | None]:
        """Go on with the request's tokens, once they are made: beside the device, unless that is quick.

        ``plain``: what the messages say never becomes a special token.
        """
        if request.messages or len(request.prompt or request.prompt_tokens or ()) > _AT_ONCE:
            return self._aside.prepared(lambda: self.make(request, plain, parts).ids, then)
        return then(self.make(request, plain, parts).ids)

    def tell(self, request: TextRequest, plain: bool, parts: Parts | None = None) -> Iterator[Event | None]:
        """Answer a `PrepareRequest` for the request."""

        def work() -> Prepared:
            made = self.make(request, plain, parts)
            return Prepared(token_ids=tuple(made.ids), text=made.text)

        return self._aside.prepared(work, lambda told: iter((told, Finished())))

    def encoded(
        self,
        texts: Sequence[str],
        then: Callable[[list[list[int]]], Iterator[Event | None]],
        *,
        bounded: bool = True,
    ) -> Iterator[Event | None]:
        """Go on with the tokens of texts that are no prompts; as `serve`. ``bounded``: by the context."""

        def encode() -> list[list[int]]:
            if bounded:
                self._check_length(max(texts, key=len))
            return [self.markers.encode(text, add_special_tokens=True) for text in texts]

        many = sum(map(len, texts)) > _AT_ONCE
        return self._aside.prepared(encode, then) if many else then(encode())

    def make(self, request: TextRequest, plain: bool = True, parts: Parts | None = None) -> Prompt:
        """The token ids that the request stands for, at least one and fewer than the context holds.

        Raises:
            InvalidParameterError: the prompt is empty, a token id is not in the vocabulary, or the chat
                template does not read a variable.
            UnsupportedInputError: the model does not take a part, or has no chat template, or its template
                refuses the conversation.
            PromptTooLongError: the prompt leaves no room for an answer.
        """
        parts = parts or Parts()
        text: str | None = None
        if request.prompt_tokens is not None:
            self._check_raw(request)
            ids = list(request.prompt_tokens)
            self._check_ids(ids)
            parts.check(ids)
        else:
            if request.prompt is not None:
                self._check_raw(request)
                text, mark = request.prompt, ""
            else:
                text, mark = self._render(request, plain, parts)
            self._check_length(text)
            raw = request.prompt is not None
            ids = parts.encode(self, text, mark, raw=raw) if text else []
            text = text.replace(mark, "") if mark else text
        if not ids:
            raise InvalidParameterError("The prompt is empty.", hint="Give at least one token of prompt.")
        self.check_room(ids)
        return Prompt(ids=ids, text=text)

    def begins(self, text: str) -> bool:
        """Whether a text begins with the token that the tokenizer would put before it."""
        start = self._tokenizer.bos_token
        return start is not None and text.startswith(start)

    def check_room(self, ids: Sequence[int]) -> None:
        """Raise `PromptTooLongError` if the context has no room for them and an answer."""
        if self._context is not None and len(ids) >= self._context:
            raise self._too_long(f"{len(ids)} tokens")

    def close(self) -> None:
        """End the threads, and the process that renders the template."""
        self._aside.close()
        self._template.close()

    def _check_ids(self, ids: Sequence[Any]) -> None:
        size = len(self._tokenizer)
        wrong = [item for item in ids if isinstance(item, bool) or not 0 <= item < size]
        if wrong:
            raise InvalidParameterError(
                f"prompt_tokens: {wrong[0]!r} is not a token id; the vocabulary has {size} tokens."
            )

    def _check_raw(self, request: TextRequest) -> None:
        """Refuse what only a chat template could heed, for a prompt that is none's."""
        asked = {
            "instructions": request.instructions is not None,
            "tools": bool(request.tools),
            "chat_template_kwargs": bool(request.chat_template_kwargs),
            **{name: getattr(request.params, name) is not None for name in _SWITCHES},
        }
        for name in (name for name, given in asked.items() if given):
            raise InvalidParameterError(
                f"{name} needs messages: the chat template heeds it, and a raw prompt has none.",
                hint=f"Give messages=…, or leave {name} out.",
            )

    def _check_length(self, text: str) -> None:
        if self._most is not None and len(text) > self._most:
            raise self._too_long(f"{len(text)} characters")

    def _too_long(self, what: str) -> PromptTooLongError:
        return PromptTooLongError(
            f"The prompt has {what}; {self._name} takes {self._context} tokens, answer included.",
            hint="Shorten it, send fewer or smaller pictures, or choose a model with a longer context.",
        )

    def _render(self, request: TextRequest, plain: bool, parts: Parts) -> tuple[str, str]:
        """The conversation as the model's chat template writes it, and the mark in it."""
        if not self._template.exists:
            raise UnsupportedInputError(
                f"{self._name} has no chat template, so it cannot take messages.",
                hint="Send TextRequest(prompt=…), or load it with ModelConfiguration(chat_template=…).",
            )
        tools = tools_of(request)
        variables = self._variables(request, tools)
        reasoning = (
            self._reasoning(tools) if any(item.reasoning for item in request.messages) else REASONING[0]
        )
        messages = turns(request.messages, parts.shown, listed=parts.listed, reasoning=reasoning)
        if says_nothing(messages):
            raise InvalidParameterError(
                "The conversation is empty.", hint="Give at least one message with text."
            )
        if request.instructions is not None:
            said: Any = request.instructions
            content = [{"type": "text", "text": said}] if parts.listed else said
            messages.insert(0, {"role": "system", "content": content})
        mark = end = ""
        if plain:
            mark = self.markers.mark_for((messages, tools, variables))
            messages = [self.markers.hide_message(item, mark) for item in messages]
            tools, variables = self.markers.hide(tools, mark), self.markers.hide(variables, mark)
        if request.continue_final_message:
            if "tool_calls" in messages[-1]:
                raise InvalidParameterError("A message that makes calls is over: it cannot be continued.")
            end = unused((messages, tools, variables), beside=mark)
            messages[-1] = continued(messages[-1], end, reasoning)
        opens = request.add_generation_prompt and not end

        def write(messages: _Messages) -> str:
            return self._template.write(
                Conversation(
                    messages=messages, tools=tools or None, add_generation_prompt=opens, variables=variables
                )
            )

        text = with_marks(self._written(messages, parts, write), mark)
        return (self._until(with_marks(text, end), end) if end else text), mark

    def _until(self, text: str, end: str) -> str:
        found, _, _ = text.rpartition(end)
        if end not in text:
            raise UnsupportedInputError(
                f"The chat template of {self._name} does not write the last message as it is.",
                hint="It cannot be continued: send TextRequest(prompt=…) with the text so far.",
            )
        return found.replace(end, "")

    def _written(self, messages: _Messages, parts: Parts, write: Callable[[_Messages], str]) -> str:
        """What the template makes of the messages, in the first form that comes out right.

        Raises:
            UnsupportedInputError: it refuses them, or leaves out a system message.
        """
        failed: Exception | None = None
        spare: str | None = None
        for form in forms(messages):
            try:
                text = write(form)
            except TemplateBoundError:
                raise
            except Exception as error:  # templates are programs of the model's publisher
                failed = failed or error
                continue
            if not (shows_values(text, form) or leaves_out(text, form)) and parts.placed(text):
                self._check_system(form, text, write)
                return text
            spare = text if spare is None else spare
        if spare is not None:
            return spare
        late = [item for at, item in enumerate(messages) if not at or item["role"] != "system"]
        if len(late) < len(messages) and _writes(write, late):
            raise self._late_system(str(failed)) from failed
        raise UnsupportedInputError(
            f"The chat template of {self._name} refused the conversation: {failed}.",
            hint="Many want alternating user and assistant messages, and some no system message.",
        ) from failed

    def _check_system(self, messages: _Messages, text: str, write: Callable[[_Messages], str]) -> None:
        """Some templates read a system message at the front alone, and leave out others without a word."""
        for at, item in enumerate(messages):
            if not at or item["role"] != "system" or text_of(item).strip() in text:
                continue
            if write([*messages[:at], *messages[at + 1 :]]) == text:
                raise self._late_system("it leaves the others out")

    def _late_system(self, why: str) -> UnsupportedInputError:
        return UnsupportedInputError(
            f"The chat template of {self._name} takes a system message at the front only: {why}.",
            hint="Join them into one (instructions=…), or say the later ones as the user.",
        )

    def _reasoning(self, tools: _Messages) -> str:
        """The name by which the template looks for what an assistant thought."""
        reads = self._reads(tools)
        known = REASONING if reads is None else [name for name in REASONING if name in reads.attributes]
        return known[0] if known else REASONING[0]

    def _reads(self, tools: _Messages) -> Reads | None:
        try:
            return self._template.reads(tools or None)
        except TemplateBoundError:
            raise
        except Exception as error:
            raise UnsupportedInputError(
                f"The chat template of {self._name} cannot be read: {error}."
            ) from error

    def _variables(self, request: TextRequest, tools: _Messages) -> dict[str, Any]:
        """What the template is given besides the conversation.

        Raises:
            InvalidParameterError: it does not read one, or the request sets it elsewhere.
            UnsupportedInputError: it has no such switch.
        """
        found: dict[str, Any] = thaw(request.chat_template_kwargs)
        asked = {name: getattr(request.params, name) for name in _SWITCHES}
        if not found and all(value is None for value in asked.values()):
            return {}
        reads, own = self._reads(tools), {*_OWN, *self._template.words}
        for name in found:
            self._check_variable(name, reads, own)
        for parameter, value in asked.items():
            if value is None:
                continue
            names = [name for name in _SWITCHES[parameter] if reads is None or name in reads.variables]
            if not names and value is False and not self._reasons:
                continue
            if not names:
                raise UnsupportedInputError(
                    f"The chat template of {self._name} has no choice of {parameter}.",
                    hint=f"Leave {parameter} out of the parameters.",
                )
            if found.setdefault(names[0], value) != value:
                raise InvalidParameterError(
                    f"{parameter}={value!r}, but {names[0]}={found[names[0]]!r} in chat_template_kwargs.",
                    hint="Give one of them.",
                )
        return found

    def _check_variable(self, name: str, reads: Reads | None, own: set[str]) -> None:
        if name in own:
            raise InvalidParameterError(
                f"chat_template_kwargs cannot set {name!r}: the request or the tokenizer does.",
                hint="Use the request's own field.",
            )
        if reads is None or name in reads.variables:
            return
        known = sorted(reads.variables - own)
        near = difflib.get_close_matches(name, known, 3) or known
        raise InvalidParameterError(
            f"The chat template of {self._name} does not read {name!r}.",
            hint=f"It reads {', '.join(near)}." if near else "It reads no variables: leave it out.",
        )


def _writes(write: Callable[[_Messages], str], messages: _Messages) -> bool:
    try:
        write(messages)
    except Exception:  # as above
        return False
    return True


__all__ = ["Parts", "Prompt", "Prompts", "Template"]
