"""Serving text requests on a language model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlxengine import (
    Event,
    Finished,
    LoadAdapterRequest,
    Request,
    RunContext,
    ScoreRequest,
    TextRequest,
    UnloadAdapterRequest,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnsupportedInputError
from mlxengine.toolkit.answers import Answer, AnswerStream
from mlxengine.toolkit.choices import ChoicesStream, choices
from mlxengine.toolkit.sampling import guarded

from . import features
from ._chat import tools_of
from ._harmony import HarmonyRouter, final_begins, is_harmony
from ._model import LanguageModel
from ._parts import Router, thinking_budget, thinks
from ._score import score
from ._sources import adapter_folder
from ._tags import AdaptedAnswer


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: ``None`` for what is not a text request on a language model."""
    if not isinstance(model, LanguageModel):
        return None
    if isinstance(request, ScoreRequest):
        return score(model, request, context)
    if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest):
        return _change_adapters(model, request, context)
    if not isinstance(request, TextRequest):
        return None
    if request.params.logprobs or request.params.top_logprobs:
        context.features.require(features.LOGPROBS)
    if request.params.grammar is not None:
        context.features.require(features.STRUCTURED_OUTPUT)
    if request.params.adapter is not None:
        context.features.require(features.LORA)
    model.adapters.resolve(request.params.adapter)
    _check_tokens(model, request)
    _check_serving(model, context)
    if request.tools:
        _check_tools(model, request, context)
    plain = not context.features.get(features.SPECIAL_TOKENS_IN_TEXT)
    return model.prompts.serve(request, plain, lambda prompt: _admit(model, request, context, prompt))


def _admit(
    model: LanguageModel, request: TextRequest, context: RunContext, prompt: list[int]
) -> Iterator[Event | None]:
    adapter = model.adapters.resolve(request.params.adapter)  # what was loaded before may be gone
    answers = choices(
        model.voice,
        prompt,
        request.params,
        streaming=context.features.get(features.STREAMING),
        priority=request.priority,
        make=AdaptedAnswer,
    )
    for answer in answers:
        _part(model, request, answer, context)
        answer.reuse = context.features.get(features.PROMPT_CACHE)
        assert isinstance(answer, AdaptedAnswer)
        answer.adapter = adapter
        model.answers.add(answer)
        model.batch.admit(answer)
    if len(answers) == 1:
        return AnswerStream(model.batch, answers[0], context)
    return ChoicesStream(model.batch, answers, context)


def _change_adapters(
    model: LanguageModel, request: LoadAdapterRequest | UnloadAdapterRequest, context: RunContext
) -> Iterator[Event | None]:
    context.features.require(features.LORA)
    if isinstance(request, LoadAdapterRequest):
        found = adapter_folder(request.source, context.fetch)
        folder = found if isinstance(found, Path) else (yield from found)
        model.adapters.load(request.name, folder, scale=request.scale)
        if request.default:
            model.adapters.default = request.name
    else:
        model.unload_adapter(request.name)
    yield Finished()


def _check_tools(model: LanguageModel, request: TextRequest, context: RunContext) -> None:
    context.features.require(features.TOOL_CALLING)
    if not request.messages:
        raise InvalidParameterError("Tools need messages: they are described in the chat template.")
    if not (model.tokenizer.has_tool_calling or is_harmony(model.tokenizer)):
        raise UnsupportedInputError(
            f"{model.card.id} has no known format of tool calls.", hint="Choose a model that calls tools."
        )


def _part(model: LanguageModel, request: TextRequest, answer: Answer, context: RunContext) -> None:
    """Tell reasoning and tool calls apart in a conversation; a raw prompt gets raw text."""
    tokenizer, budget = model.tokenizer, request.params.thinking_budget
    parted = context.features.get(features.REASONING)
    reasons = parted and tokenizer.has_thinking
    continued = not (request.messages and request.add_generation_prompt)
    thinking = thinks(tokenizer, answer.prompt, continued=continued)
    if budget is not None:
        context.features.require(features.REASONING)
        if not reasons or len(tokenizer.think_end_tokens) != 1 or len(tokenizer.think_start_tokens) != 1:
            raise UnsupportedInputError(f"{model.card.id} has no reasoning whose length can be bounded.")
        bound = thinking_budget(tokenizer, answer.prompt, budget, thinking=thinking)
        answer.processors.append(guarded(bound, answer.fail))
    if answer.grammar is not None and reasons and thinking and (request.messages or budget is not None):
        end = tuple(tokenizer.think_end_tokens)
        answer.grammar.after(lambda said: tuple(said[-len(end) :]) == end)
    harmony = is_harmony(tokenizer)
    marked = tokenizer.has_thinking or bool(tokenizer.response_transitions) or harmony
    if not request.messages or not (request.tools or (parted and marked)):
        return
    tools = tools_of(request)
    if harmony:
        answer.router = HarmonyRouter(tokenizer, answer.prompt, tools, answer.index)
        if answer.grammar is not None:
            answer.grammar.after(final_begins(tokenizer))
        return
    answer.router = Router(tokenizer, answer.prompt, tools, answer.index, thinking=thinking)


def _check_serving(model: LanguageModel, context: RunContext) -> None:
    for name, flag in features.SERVING.items():
        wanted: object = context.features.get(flag)
        if wanted != getattr(model.serving, name):
            raise FeatureUnavailableError(
                f"{flag.name} is {getattr(model.serving, name)!r} for the loaded model; "
                f"one call cannot have {wanted!r}.",
                hint=f"Load the model with features={{{flag.name!r}: {wanted!r}}}.",
            )


def _check_tokens(model: LanguageModel, request: TextRequest) -> None:
    size = model.vocabulary
    wrong = [token for token, _ in request.params.logit_bias or () if token >= size]
    if wrong:
        raise InvalidParameterError(
            f"logit_bias names the token {wrong[0]}; the vocabulary of {model.card.id} has {size} tokens."
        )


__all__ = ["serve"]
