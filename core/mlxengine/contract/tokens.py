"""The unit of usage that kinds on tokenizers share."""

from __future__ import annotations

from attrs import frozen

from .events import Usage


@frozen(kw_only=True)
class TokenUsage(Usage):
    """What was counted by the model's own tokenizer.

    ``cached_tokens`` are those of the prompt that did not have to be computed again.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @classmethod
    def of(cls, usage: Usage) -> TokenUsage:
        """The tokens of a usage; none where something else was counted."""
        return usage if isinstance(usage, cls) else cls()

    @property
    def total_tokens(self) -> int:
        """Those of the prompt and of the answer."""
        return self.prompt_tokens + self.completion_tokens


__all__ = ["TokenUsage"]
