"""What a prompt shows the language model, made when its turn comes; pictures of one size in one call.

The vision encoder takes the pictures of several prompts as it takes several pictures of one: the prompts are
put behind each other, and the features that stand for each one's placeholders are its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from ._cache import FeatureCache
from ._prefill import SPLICED, Features, Prefill, embed, encode

_log = logging.getLogger("mlxengine.vlm")

TOGETHER = SPLICED - {"paligemma"}
"""Model types whose encoder gives each picture the same features in company; PaliGemma's are never taken
apart from its prompt."""


@frozen(kw_only=True)
class Prompt:
    """What a request came to: tokens with media placeholders expanded, the media's arrays and names."""

    ids: list[int]
    given: dict[str, Any] = field(factory=dict, repr=False)
    media: tuple[str, ...] = ()


@define(eq=False, kw_only=True)
class Sight:
    """Makes the inputs of one prompt.

    Args:
        network: a model of mlx-vlm.
        kind: its ``model_type``.
        prompt: tokens and media.
        media_tokens: the placeholders' token ids.
        kept: features of earlier requests' media, or ``None``.
        known: this prompt's, made with those of others.
    """

    network: Any
    kind: str
    prompt: Prompt
    media_tokens: frozenset[int]
    kept: FeatureCache | None = None
    known: Features | None = field(default=None, repr=False)

    def __call__(self) -> Prefill:
        known, self.known = self.known or self._remembered(), None
        prompt = self.prompt
        made = embed(self.network, self.kind, prompt.ids, prompt.given, self.media_tokens, known)
        if self.kept is not None and made.features is not None:
            self.kept.put(prompt.media, made.features)
        return made

    @property
    def unseen(self) -> bool:
        """Whether it has media that have to be encoded."""
        return bool(self.prompt.media) and self._remembered() is None

    @property
    def size(self) -> tuple[tuple[str, Any], ...]:
        """Names and shapes of what the processor made; media of one size have the same."""
        return tuple((name, getattr(value, "shape", None)) for name, value in self.prompt.given.items())

    def _remembered(self) -> Features | None:
        return None if self.kept is None else self.kept.get(self.prompt.media)


def look(sights: Sequence[Sight]) -> None:
    """Encode the media of several prompts, those of one size in one call, each picture once."""
    sizes: dict[Any, dict[tuple[str, ...], list[Sight]]] = {}
    for sight in sights:
        if sight.unseen and sight.kind in TOGETHER:
            sizes.setdefault(sight.size, {}).setdefault(sight.prompt.media, []).append(sight)
    for alike in sizes.values():
        if sum(map(len, alike.values())) < 2:
            continue
        first = [same[0] for same in alike.values()]
        try:
            found = encode(
                first[0].network,
                first[0].kind,
                [(sight.prompt.ids, sight.prompt.given) for sight in first],
                first[0].media_tokens,
            )
        except Exception as error:  # whoever is to blame fails alone, when it looks by itself
            _log.debug("Pictures could not be encoded together: %r", error)
            continue
        for same, features in zip(alike.values(), found, strict=True):
            for sight in same:
                sight.known = features


__all__ = ["TOGETHER", "Prompt", "Sight", "look"]
