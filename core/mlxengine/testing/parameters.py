"""What the author of a back end for text refuses: every parameter that it does not honour."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attrs import fields

from ..text.grammar import Grammar
from ..text.params import GenerateParams

_VALUES: Mapping[str, Any] = {
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "repetition_context_size": 20,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": ((1, 2.0),),
    "seed": 7,
    "stop": ("\n\n",),
    "stop_token_ids": (1,),
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 2,
    "grammar": Grammar.choices(["yes", "no"]),
    "thinking": True,
    "thinking_budget": 8,
    "reasoning_effort": "low",
    "adapter": "other",
    "n": 2,
}


def parameters_beyond(honoured: Collection[str]) -> tuple[GenerateParams, ...]:
    """One value for each parameter of text that a back end does not honour, for `Specimen.refused`.

    Args:
        honoured: the names of those that it does.
    """
    names = [item.name for item in fields(GenerateParams)]
    return tuple(GenerateParams(**{name: _VALUES[name]}) for name in names if name not in honoured)


__all__ = ["parameters_beyond"]
