"""A loaded language model."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from mlxengine import ModelCard
from mlxengine.toolkit.answers import Voice
from mlxengine.toolkit.rows import SharedBatch

from ._decoder import BatchDecoder


@define(eq=False)
class LanguageModel:
    """What `load` returns and `generate` is given.

    Args:
        card: what was found out before loading.
        network: mlx-lm's module; called with token ids of shape (rows, length) and a cache, it returns
            logits of shape (rows, length, vocabulary).
        tokenizer: mlx-lm's wrapper around the tokenizer.
        config: the normalised ``config.json``.
        context: longest context in tokens, or ``None``.
        defaults: ``generation_config.json``.
        stop_ids: token ids that end an answer.
        batch: decodes all requests together.
        voice: what their answers have in common.
    """

    card: ModelCard
    network: Any
    tokenizer: Any
    config: dict[str, Any]
    context: int | None
    defaults: dict[str, Any]
    stop_ids: frozenset[int]
    batch: SharedBatch = field(init=False)
    voice: Voice = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.batch = SharedBatch(lambda rows: BatchDecoder(self.network, rows))
        self.voice = Voice(
            decode=lambda tokens: str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)),
            defaults=self.defaults,
            stop_ids=self.stop_ids,
            context=self.context,
        )

    def close(self) -> None:
        """Let go of the weights and of every cache."""
        self.batch.close()
        self.network = self.tokenizer = None


__all__ = ["LanguageModel"]
