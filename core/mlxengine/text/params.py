"""How one text request is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import Attribute, field, fields, frozen

from ..contract._convert import flag, integers, named, optional_text, text
from ..errors import InvalidParameterError
from .grammar import Grammar

_Check = Callable[[Any, "Attribute[Any]", Any], None]


def number(low: float | None = None, high: float | None = None, *, integer: bool = False) -> _Check:
    """A validator: a number within limits, or ``None``."""

    def check(_instance: object, attribute: Attribute[Any], value: Any) -> None:
        if value is None:
            return
        kinds: Any = (int,) if integer else (int, float)
        wrong = not isinstance(value, kinds) or isinstance(value, bool) or value != value
        below = not wrong and low is not None and value < low
        above = not wrong and high is not None and value > high
        if wrong or below or above:
            what = "an integer" if integer else "a number"
            limits = f" from {low}" if low is not None else ""
            limits += f" to {high}" if high is not None else ""
            raise InvalidParameterError(f"{attribute.name}={value!r} must be {what}{limits}.")

    return check


def _strings(_instance: object, attribute: Attribute[Any], value: tuple[Any, ...]) -> None:
    for item in value:
        if not isinstance(item, str) or not item:
            raise InvalidParameterError(f"{attribute.name} must hold non-empty texts, found {item!r}.")
        text(item)


def _grammar(_instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, Grammar):
        raise InvalidParameterError(
            f"{attribute.name} must be a Grammar, found {type(value).__name__}.",
            hint="Write Grammar.json(schema), Grammar.regex(…), Grammar.lark(…) or Grammar.choices(…).",
        )


def _texts(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _bias(value: Any) -> Any:
    if value is None or isinstance(value, tuple):
        return value
    if not isinstance(value, Mapping):
        raise InvalidParameterError(f"logit_bias must map token ids to numbers, found {value!r}.")
    return tuple(sorted(value.items()))


def _bias_pairs(_instance: object, _attribute: Attribute[Any], value: Any) -> None:
    for pair in value or ():
        token, bias = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
        wrong = isinstance(token, bool) or not isinstance(token, int) or token < 0
        if wrong or not isinstance(bias, int | float) or bias != bias:
            raise InvalidParameterError(f"logit_bias must map token ids to numbers, found {pair!r}.")


@frozen(kw_only=True, field_transformer=named)
class GenerateParams:
    """Parameters of one text request. ``None`` means "the model's own default", never zero.

    Where the model has no default of its own (``generation_config.json``), an answer goes on to its end or
    the context's (`FinishReason`), greedy (``temperature`` 0) and without penalties. Of that file's keys
    these count: ``max_new_tokens``; ``max_length``, for prompt and answer, where ``max_tokens`` is ``None``;
    ``stop_strings``, besides ``stop``; ``repetition_penalty``, unless ``temperature`` is 0 here; and with
    ``do_sample``, ``temperature``, ``top_p``, ``top_k`` and ``min_p``.

    Args:
        max_tokens: most tokens to generate, at least 1. ``None``: as many as it needs; of a model whose
            context is not known, 4,096.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 turns it off.
        top_k: keep the k most probable tokens; 0 turns it off.
        min_p: keep tokens of at least this fraction of the best one's probability.
        repetition_penalty: factor over recent tokens (1 is off), over ``repetition_context_size`` tokens.
        presence_penalty, frequency_penalty: subtracted from the logits, as in OpenAI's API.
        logit_bias: token id to additive bias.
        seed: makes sampling repeatable, alone or in any batch; 0 is a seed.
        stop: texts that end the answer and are not part of it, also across token borders.
        stop_token_ids: token ids that end the answer.
        ignore_eos: go on past the model's end-of-text token and its own ``stop_strings``.
        logprobs: report the log-probability of each token.
        top_logprobs: and of this many best alternatives, 0 to 20.
        grammar: what the whole answer must look like.
        thinking: whether a model that can reason first should; ``None`` leaves it to its template.
        thinking_budget: most tokens of reasoning; then its end is forced.
        reasoning_effort: how hard to think, in the words of the model's template (``"low"``, ``"medium"``,
            ``"high"``); refused where the template has no such choice.
        adapter: name of a loaded adapter; ``"base"`` is the plain weights, ``None`` the model's default.
        n: number of answers; answer i of a seeded request draws with ``seed + i``.

    Raises:
        InvalidParameterError: a value has the wrong type or is outside its range.
    """

    max_tokens: int | None = field(default=None, validator=number(1, integer=True))
    temperature: float | None = field(default=None, validator=number(0, 100))
    top_p: float | None = field(default=None, validator=number(0, 1))
    top_k: int | None = field(default=None, validator=number(0, integer=True))
    min_p: float | None = field(default=None, validator=number(0, 1))
    repetition_penalty: float | None = field(default=None, validator=number(0.01, 100))
    repetition_context_size: int | None = field(default=None, validator=number(1, integer=True))
    presence_penalty: float | None = field(default=None, validator=number(-100, 100))
    frequency_penalty: float | None = field(default=None, validator=number(-100, 100))
    logit_bias: tuple[tuple[int, float], ...] | None = field(
        default=None, converter=_bias, validator=_bias_pairs
    )
    seed: int | None = field(default=None, validator=number(0, 2**64 - 1, integer=True))
    stop: tuple[str, ...] = field(default=(), converter=_texts, validator=_strings)
    stop_token_ids: tuple[int, ...] = field(default=(), converter=integers)
    ignore_eos: bool = field(default=False, validator=flag)
    logprobs: bool = field(default=False, validator=flag)
    top_logprobs: int = field(default=0, validator=number(0, 20, integer=True))
    grammar: Grammar | None = field(default=None, validator=_grammar)
    thinking: bool | None = field(default=None, validator=flag)
    thinking_budget: int | None = field(default=None, validator=number(0, integer=True))
    reasoning_effort: str | None = field(default=None, validator=optional_text)
    adapter: str | None = field(default=None, validator=optional_text)
    n: int = field(default=1, validator=number(1, 128, integer=True))

    @property
    def given(self) -> frozenset[str]:
        """The names of the parameters that are not left to the model: what a back end heeds, or refuses."""
        names = [item.name for item in fields(type(self)) if getattr(self, item.name) != item.default]
        return frozenset(names)


def params_from(values: Mapping[str, Any]) -> GenerateParams:
    """Build parameters from names and values, and say which name is unknown.

    Raises:
        InvalidParameterError: a name is unknown (the nearest known one is suggested) or a value is bad.
    """
    import difflib

    import attrs

    known = [item.name for item in attrs.fields(GenerateParams)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise InvalidParameterError(
                f"Unknown parameter {name!r}.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known parameters: {', '.join(known)}.",
            )
    return GenerateParams(**values)


__all__ = ["GenerateParams", "params_from"]
