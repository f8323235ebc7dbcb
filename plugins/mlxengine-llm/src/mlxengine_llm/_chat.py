"""The chat templates that mlx-lm brings as code, beside those that models bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlxengine.toolkit.conversation import Prompts
from mlxengine.toolkit.templates import Conversation, bind


def prompts_of(tokenizer: Any, name: str, context: int | None, *, reasons: bool) -> Prompts:
    """What makes token ids of requests.

    Args:
        tokenizer: mlx-lm's wrapper around the tokenizer.
        name: the model's, for errors.
        context: longest context in tokens, or ``None``.
        reasons: whether the model can reason.
    """
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    own = bind(inner)
    code = getattr(tokenizer, "_chat_template", None) is not None or not own.bounded
    template = _Code(tokenizer) if code else own
    return Prompts(inner, name=name, context=context, template=template, reasons=reasons)


class _Code:
    """A template that is a function: mlx-lm's wrapper knows how it is called."""

    exists = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.words: Mapping[str, Any] = {}

    def reads(self, _tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Nobody can tell."""

    def write(self, conversation: Conversation) -> str:
        return str(self._tokenizer.apply_chat_template(conversation.messages, **conversation.options))

    def close(self) -> None:
        """There is nothing to end."""


__all__ = ["prompts_of"]
