"""The grammar of a whole answer: text or calls, in the way of the model, as the request allows them."""

from __future__ import annotations

import json
from collections.abc import Collection

from attrs import frozen

from ...errors import InvalidParameterError
from ...text.grammar import Grammar, GrammarKind
from ...text.requests import ToolChoice
from ..grammar import BLANKS, check_patterns
from ._dialect import Dialect, Headers
from ._formats import GENERIC, Format
from ._lark import ANYTHING, Lark, one_of
from ._values import Schema
from ._writers import whole_object


@frozen(kw_only=True)
class Tool:
    """A tool: its name, the schema of its arguments, and whether calls are held to that in any case."""

    name: str
    schema: Schema
    strict: bool = False


@frozen(kw_only=True)
class Composer:
    """Composes the grammar of an answer.

    Args:
        dialect: how the model speaks.
        tools: what may be called.
        choice: see `TextRequest.tool_choice`.
        several: whether one answer may make several calls.
        answer: what an answer that makes no call must look like, if anything.
        stop_ids: token ids that end an answer.
        reasons: whether the answer may begin with reasoning.
        heading: the message that the prompt has begun.
    """

    dialect: Dialect
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | str = "auto"
    several: bool = True
    answer: Grammar | None = None
    stop_ids: Collection[int] = ()
    reasons: bool = False
    heading: str = ""

    def grammar(self) -> Grammar | None:
        """The grammar, or ``None`` where anything may be said.

        Raises:
            UnsupportedInputError: a schema of a tool asks for what cannot be held.
        """
        dialect = self.dialect
        if not self.dialect.named and self.choice == "none":
            return self.answer  # its calls would be plain text anyway
        forced = bool(self.tools) and self.choice not in ("auto", "none")
        bound = forced or any(tool.strict for tool in self.tools) or not self.several or self.choice == "none"
        if self.answer is None and not (self.tools and bound):
            return None
        lark = Lark(dialect.tokenizer)
        ahead = self._reasoning(lark)
        if not (self.tools or ahead or dialect.silent or dialect.headers):
            return self.answer
        if dialect.headers is not None:
            start = self._under_headers(lark, dialect.headers, forced=forced)
        elif forced:
            start = self._calls(lark)
        else:
            start = self._freely(lark)
        return Grammar.lark(lark.source(f"{ahead} ({start})".strip()))

    def _reasoning(self, lark: Lark) -> str:
        """Reasoning whose marks are several tokens, so that nobody can tell by the first whether it comes."""
        if not self.reasons or self.dialect.think is None or self.dialect.begins_with_a_token:
            return ""
        start, end = self.dialect.think
        return f"({lark.text(start)} {lark.through(end)})?"

    def _freely(self, lark: Lark) -> str:
        """Text, and calls where the model likes to make some."""
        form, silent = self.dialect.calls or GENERIC, self.dialect.silent
        if self.answer is not None:
            text = self._answer(lark)
            if silent:
                text = f"{lark.text(silent[0])} {text} {lark.text(silent[1])}"
            return text if self.choice == "none" or not self.tools else f"({text}) | ({self._calls(lark)})"
        free = lark.without(form.opens, silent)
        if self.choice == "none":
            return free
        piece = lark.rule(f"{lark.up_to(form.opens, silent)} {self._inside(lark, form)}")
        rest = lark.rule(ANYTHING, terminal=True) if lark.token(form.opens) is None else free
        return f"{piece}* {rest}" if self.several else f"{rest} | {piece} {free}"

    def _calls(self, lark: Lark) -> str:
        """Calls and nothing else, at least one."""
        form = self.dialect.calls or GENERIC
        opens = "" if form.kept else lark.text(form.opens)
        piece = lark.rule(f"{opens} {self._inside(lark, form)}")
        return f'{piece} ("\\n"? {piece})*' if self.several and form.between is None else piece

    def _inside(self, lark: Lark, form: Format) -> str:
        """What follows the mark that opens a piece."""
        call = lark.rule(one_of([self._written(lark, form, tool) for tool in self._callable]))
        if self.several and form.between is not None:
            call = f"{call} ({lark.text(form.between)} {call})*"
        before, after = form.around
        return " ".join(filter(None, [lark.text(before), call, lark.text(after + form.closes)]))

    @property
    def _callable(self) -> list[Tool]:
        """The tools that may be called."""
        wanted = self.choice.name if isinstance(self.choice, ToolChoice) else None
        return [tool for tool in self.tools if wanted in (None, tool.name)]

    def _written(self, lark: Lark, form: Format, tool: Tool) -> str:
        try:
            return form.write(lark, tool.name, self._schema(tool))
        except (AttributeError, TypeError, ValueError) as error:  # a value of another type than JSON schema's
            raise InvalidParameterError(
                f"The parameters of the tool {tool.name!r} are no JSON schema: {error}.",
                hint="Check the types of its keywords' values.",
            ) from error

    def _schema(self, tool: Tool) -> Schema | None:
        if self.choice == "auto" and not tool.strict:
            return None
        check_patterns(tool.schema)
        return tool.schema

    def _under_headers(self, lark: Lark, headers: Headers, *, forced: bool) -> str:
        """Messages with headers: what is thought, and then the answer or calls."""
        spoken = [
            item
            for item in headers.thought
            if not forced or headers.spoken(item.removesuffix(headers.message)) == "reasoning"
        ]
        thought = one_of(list(map(lark.text, spoken)))
        before = f"({thought} {lark.through(headers.thought_end)})*" if self.reasons else ""
        if headers.message in self.heading:  # the prompt has begun a message already
            if headers.spoken(self.heading) == "text":
                return self._answer(lark)
            before = f"{lark.through(headers.thought_end)} {before}"
        options = []
        if not forced:
            options.append(f"{one_of(list(map(lark.text, headers.answer)))} {self._answer(lark)}")
        if self.tools and self.choice != "none":
            options.append(self._messages(lark, headers))
        return f"{before} {one_of([f'({item})' for item in options])}"

    def _messages(self, lark: Lark, headers: Headers) -> str:
        """Messages that are calls."""
        form = self.dialect.calls
        calls = []
        for tool in self._callable:
            head = lark.text(headers.call.replace("NAME", tool.name))
            if form is None:
                calls.append(f"{head} {whole_object(lark, self._schema(tool))}")
            else:
                own = self._written(lark, form, tool)
                more = f" ({own})*" if self.several else ""
                calls.append(f"{head} {lark.text(form.opens)} {own}{more} {lark.text(form.closes)}")
        call = lark.rule(one_of([f"({item})" for item in calls]))
        end = lark.token(headers.call_end)
        if end is None or end in self.stop_ids:
            return call
        call = f"{call} {lark.text(headers.call_end)}"
        return f"{call} ({lark.text(headers.starts)} {call})*" if self.several else call

    def _answer(self, lark: Lark) -> str:
        """The text of an answer."""
        if self.answer is None:
            return lark.rule(ANYTHING, terminal=True)
        if self.answer.kind is GrammarKind.REGEX:
            return lark.rule(lark.pattern(self.answer.source), terminal=True)
        if self.answer.kind is GrammarKind.LARK:
            return lark.rule(f"%lark {{\n{self.answer.source}\n}}")
        schema = json.loads(self.answer.source)
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        check_patterns(schema)
        return lark.json(schema, BLANKS)


__all__ = ["Composer", "Tool"]
