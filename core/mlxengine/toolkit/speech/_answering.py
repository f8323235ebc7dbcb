"""What a request asks of an answer's form, and how its answers are held to it and parted."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import mlx.core as mx
from attrs import frozen

from ...errors import InvalidParameterError, UnsupportedInputError
from ...readonly import thaw
from ...text.messages import Message, Part, Role, TextPart, ToolCallPart, ToolResultPart
from ...text.params import GenerateParams
from ...text.requests import TextRequest
from ..answers import Answer
from ..sampling import LogitsProcessor, guarded
from ..turns import tools_of
from ._composing import Composer, Tool
from ._dialect import Dialect
from ._formats import GENERIC
from ._router import Router

_GENERIC_TEXT = """You can call these tools, which are described as JSON:
{tools}
To call one, write nothing but a JSON object with its name and its arguments:
{{"name": "the tool's name", "arguments": {{...}}}}"""


def shown(dialect: Dialect, request: TextRequest) -> TextRequest:
    """The request as the model's chat template is to see it.

    A model that has no notation of tool calls is told of the tools, and of calls that were made, in texts;
    where it may call none too, since what was computed for the prompts before holds them.
    """
    if not request.tools or dialect.named:
        return request
    text = _GENERIC_TEXT.format(tools="\n".join(json.dumps(tool) for tool in tools_of(request)))
    messages = tuple(map(_as_text, request.messages))
    instructions = request.instructions
    if instructions is None and messages and messages[0].role is Role.SYSTEM:
        messages = (messages[0].with_text(f"{messages[0].text}\n\n{text}"), *messages[1:])
    else:
        instructions = text if instructions is None else f"{instructions}\n\n{text}"
    return attrs.evolve(request, messages=messages, instructions=instructions, tools=(), tool_choice="auto")


def _as_text(message: Message) -> Message:
    """A message whose calls are written out, or a result that the user tells."""
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            call = {"name": part.name, "arguments": thaw(part.arguments)}
            parts.append(TextPart(json.dumps(call, ensure_ascii=False)))
        elif isinstance(part, ToolResultPart):
            parts += [TextPart(f"{part.name} returned: {part.content}"), *part.images]
        else:
            parts.append(part)
    role = Role.USER if message.role is Role.TOOL else message.role
    return attrs.evolve(message, role=role, parts=tuple(parts))


def check(dialect: Dialect, request: TextRequest, who: str) -> None:
    """Refuse what a model cannot do.

    Raises:
        InvalidParameterError: there are tools and no messages.
        UnsupportedInputError: the model has no notation of calls and may choose by itself whether to make
            one, or its reasoning cannot be bounded.
    """
    if request.tools and not request.messages:
        raise InvalidParameterError("Tools need messages: they are described in the chat template.")
    if request.tools and not dialect.named and request.tool_choice == "auto":
        raise UnsupportedInputError(
            f"{who} has no known format of tool calls.",
            hint='Choose a model that calls tools, or make this one call: tool_choice="required".',
        )
    if request.params.thinking_budget is not None and not dialect.bounded:
        raise UnsupportedInputError(f"{who} has no reasoning whose length can be bounded.")


@frozen(kw_only=True)
class Answering:
    """How the answers to one request are held to its form, and parted.

    Args:
        dialect: how the model speaks.
        request: what is asked.
        prompt: its token ids.
        stop_ids: token ids that end an answer.
        parted: whether reasoning is told apart from the answer.
        deltas: whether calls are told as they are written.
    """

    dialect: Dialect
    request: TextRequest
    prompt: Sequence[int] = attrs.field(repr=False)
    stop_ids: Collection[int] = ()
    parted: bool = True
    deltas: bool = True

    @cached_property
    def thinking(self) -> bool:
        """Whether the prompt ends within reasoning."""
        continued = not self.request.messages or not self.request.add_generation_prompt
        continued = continued or self.request.continue_final_message
        return self.dialect.thinks(self.prompt, continued=continued)

    @property
    def params(self) -> GenerateParams:
        """The request's, with the grammar of all that an answer may be.

        Raises:
            UnsupportedInputError: a tool's schema asks for what cannot be held.
        """
        if not self.request.messages or not (self.parted or self.request.tools):
            return self.request.params
        composer = Composer(
            dialect=self.dialect,
            tools=self._tools,
            choice=self.request.tool_choice,
            several=self.request.parallel_tool_calls is not False,
            answer=self.request.params.grammar,
            stop_ids=self.stop_ids,
            reasons=self._reasons and not self.thinking and self.request.params.thinking is not False,
            heading=self.dialect.heading(self.prompt),
        )
        return attrs.evolve(self.request.params, grammar=composer.grammar())

    @property
    def _reasons(self) -> bool:
        return self.parted and self.dialect.reasons

    @cached_property
    def _tools(self) -> tuple[Tool, ...]:
        found = [tool.get("function", tool) for tool in tools_of(self.request)]
        return tuple(
            Tool(
                name=str(item.get("name")),
                schema=item.get("parameters") or {},
                strict=bool(item.get("strict")),
            )
            for item in found
        )

    def prepare(self, answer: Answer) -> None:
        """Bound an answer's reasoning, let its grammar begin behind that, and part what it says."""
        request, dialect, thinking = self.request, self.dialect, self.thinking
        budget = request.params.thinking_budget
        if budget is not None:
            bound = _thinking_budget(dialect, len(self.prompt), budget, thinking=thinking)
            answer.processors.append(guarded(bound, answer.fail))
        if answer.grammar is not None and self._reasons and dialect.think is not None:
            if thinking and (request.messages or budget is not None):
                answer.grammar.after(self._reasoned())
            elif request.messages and dialect.begins_with_a_token and request.params.thinking is not False:
                answer.grammar.after(self._reasoned(), opens=dialect.think_ids[0][0])
        if request.messages and (request.tools or (self.parted and (dialect.reasons or dialect.silent))):
            answer.router = self._router(answer.index, thinking=thinking, bound=answer.grammar is not None)

    def _reasoned(self) -> Callable[[Sequence[int]], bool]:
        end = self.dialect.think_ids[1]
        return lambda said: tuple(said[-len(end) :]) == end

    def _router(self, index: int, *, thinking: bool, bound: bool) -> Router:
        speaks = self.dialect if self.parted else attrs.evolve(self.dialect, think=None)
        tools: Mapping[str, Any] = {tool.name: tool.schema for tool in self._tools}
        return Router(
            speaks,
            self.dialect.calls if self.dialect.named else GENERIC,
            {} if self.request.tool_choice == "none" else tools,
            self.prompt,
            index,
            thinking=thinking and self.parted,
            deltas=self.deltas,
            bound=bound,
        )


def _thinking_budget(dialect: Dialect, length: int, budget: int, *, thinking: bool) -> LogitsProcessor:
    """Ends reasoning after ``budget`` tokens of the answer by forcing the tokens that end it, in turn."""
    start, end = dialect.think_ids

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        said = tokens[length:]
        if said.size < budget:
            return logits
        begun = mx.array(True) if thinking else mx.any(_ends(said, start))
        forced = mx.logical_and(begun, mx.logical_not(mx.any(_ends(said, end))))
        # What was written of the end already goes on: after the longest beginning of it that was said last.
        token = mx.array(end[0])
        for written in range(1, min(len(end) - 1, said.size) + 1):
            token = mx.where(mx.all(said[-written:] == mx.array(end[:written])), end[written], token)
        only = mx.where(mx.arange(logits.shape[-1]) == token, 0.0, -mx.inf).astype(logits.dtype)
        return mx.where(forced, only[None], logits)

    return process


def _ends(said: mx.array, run: Sequence[int]) -> mx.array:
    """Where a run of tokens ends in what was said, for each place at which it can."""
    places = said.size - len(run) + 1
    found = mx.full((max(places, 0),), True)
    for at, token in enumerate(run):
        found = mx.logical_and(found, said[at : at + max(places, 0)] == token)
    return found


__all__ = ["Answering", "check", "shown"]
