"""Whether rows may share passes of a vision-language model, tried with text on its loaded weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from attrs import evolve
from mlxengine.toolkit import trial
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.joining import Company

from ._language import Language
from ._prefill import SPLICED, embed, looks_again

_log = logging.getLogger("mlxengine.vlm.batch")


class Trial(trial.Trial):
    """What was found out about a network.

    Args:
        network: a model of mlx-vlm, its weights evaluated.
        language: runs its language model.
        kind: its ``model_type``.
        media_tokens: the placeholders' token ids.
        adapters: of the network; none is in use while it is tried.
        told: as in `mlxengine.toolkit.trial.Trial`.
    """

    def __init__(
        self,
        network: Any,
        language: Language,
        kind: str,
        media_tokens: frozenset[int],
        adapters: Adapters,
        told: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self._model = network
        self._kind = kind
        self._media = media_tokens
        self._language = language
        self._counts = False  # whether positions run apart from tokens
        found = Company.of(self._language.caches())
        padded = found.padded and kind in SPLICED
        super().__init__(
            self._language.module,
            self._language.caches,
            evolve(found, padded=padded, equal=padded, behind=False),
            log=_log,
            told=told,
            merge=self._language.merge,
            avoid=media_tokens,
            plain=lambda: adapters.use(None),
        )
        if self.company.together and looks_again(self._language.module):
            self._alone("every token of an answer takes its pictures' states from outside of the caches")

    def begin(self, pieces: Sequence[Sequence[int]], layers: list[Any]) -> None:
        plans = [embed(self._model, self._kind, piece, {}, self._media) for piece in pieces]
        if len(plans) > 1 and not all(plan.plain for plan in plans):
            raise ValueError(f"{self._kind} takes more than embeddings and positions")
        self._counts = plans[0].rope_deltas is not None
        parts = [plan.take(len(plan.ids)) for plan in plans]
        self._language.read(parts, max(map(len, pieces)), layers)

    def follow(self, tokens: mx.array, layers: list[Any]) -> mx.array:
        deltas = mx.zeros((tokens.shape[0], 1), dtype=mx.int32) if self._counts else None
        return self._language.follow(tokens, layers, deltas)


__all__ = ["Trial"]
