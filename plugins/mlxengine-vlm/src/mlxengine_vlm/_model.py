"""A loaded vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field
from mlxengine import ModelCard, ModelState
from mlxengine.toolkit.account import Account
from mlxengine.toolkit.answers import Voice
from mlxengine.toolkit.aside import Aside
from mlxengine.toolkit.estimate import text_config
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.plain_text import Markers, most_characters
from mlxengine.toolkit.room import Room
from mlxengine.toolkit.rows import SharedBatch
from mlxengine.toolkit.shapes import Shapes
from mlxengine.toolkit.token_bytes import TokenBytes
from mlxengine.toolkit.warming import warm_up

from ._cache import FeatureCache, PrefixCache
from ._decoder import VisionDecoder, VisionRow
from ._processor import media_words, template_of, tokenizer_of
from ._sight import Prompt, Sight, look
from ._trial import Trial
from .features import BATCH


@define(eq=False, kw_only=True)
class VisionModel:
    """What `load` returns and `generate` is given.

    Args:
        card: what was found out before loading.
        kind: mlx-vlm's name of the architecture.
        network: a model of mlx-vlm.
        processor: tokenizer, and what turns media into arrays.
        config: the normalised ``config.json``.
        context: longest context in tokens, or ``None``.
        defaults: ``generation_config.json``.
        stop_ids: token ids that end an answer.
        media_tokens: token ids that stand for media in a prompt.
        image_token: the one that stands for a picture.
        image_tag, video_tag, audio_tag: the same as text, or ``None`` where the model has none.
        takes: ``"image"``, ``"video"``, ``"audio"``: what a request may bring.
        template_takes_parts: whether the chat template writes the tags itself.
        cache_bytes: most memory for caches of prompts; a quarter more goes to media features. 0: none.
        end_templates: ends what renders chat templates.
        markers: keeps the texts of messages plain.
        most_characters: a longer text cannot fit the context; ``None`` where any may.
        aside: threads that prepare prompts.
        preempts: see `SharedBatch`.
        cache_size: bytes of a request's cache of so many tokens.
        reserved, cache_room: see `mlxengine.LoadContext`.
        shapes: which sizes of passes the device has met.
        first_piece: see `SharedBatch`.
        max_rows: most requests that are decoded together.
        info, missing: see `mlxengine.Loaded`.
        trial: whether rows may share a pass.
    """

    card: ModelCard
    kind: str
    network: Any
    processor: Any
    config: dict[str, Any]
    context: int | None
    defaults: dict[str, Any]
    stop_ids: frozenset[int]
    media_tokens: frozenset[int]
    image_token: int | None
    image_tag: str | None
    video_tag: str | None
    audio_tag: str | None
    takes: frozenset[str]
    template_takes_parts: bool
    cache_bytes: int
    max_rows: int
    preempts: bool = False
    cache_size: Callable[[int], int] = field(default=lambda _tokens: 0)
    reserved: int = 0
    cache_room: Callable[[], int | None] = field(default=lambda: None)
    end_templates: Callable[[], None] = field(default=lambda: None)
    markers: Markers = field(init=False)
    most_characters: int | None = field(init=False)
    aside: Aside = field(init=False, factory=Aside)
    shapes: Shapes = field(factory=Shapes)
    first_piece: int = Pace.FIRST
    info: dict[str, Any] = field(init=False, factory=dict)
    missing: dict[str, str] = field(init=False, factory=dict)
    trial: Trial = field(init=False)
    batch: SharedBatch = field(init=False)
    voice: Voice = field(init=False)
    prefixes: PrefixCache | None = field(init=False)
    features: FeatureCache | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.prefixes = PrefixCache(self.cache_bytes, self.cache_room) if self.cache_bytes else None
        share = self.cache_bytes // 4
        self.features = FeatureCache(share, self.cache_room) if self.cache_bytes else None
        tokenizer = tokenizer_of(self.processor)
        self.markers = Markers(tokenizer, template_of(self.processor), media_words(self.processor, self.tags))
        self.most_characters = None if self.context is None else most_characters(tokenizer, self.context)
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is not None and self.stop_ids:
            grammars = Grammars(fast.to_str, self.vocabulary, self.stop_ids)
        else:
            grammars = None
        account = Account(
            bytes_of=self.cache_size,
            reserved=self.reserved,
            room=self.cache_room,
            kept=lambda: self._kept,
            trim=self.trim,
        )
        self.batch = SharedBatch(
            lambda _rows: self._decoder(self.prefixes, grammars),
            max_rows=self.max_rows,
            relieve=lambda: self.trim(0),
            account=account,
            first_piece=self.first_piece,
            preempts=self.preempts,
        )
        self.trial = Trial(self.network, self.kind, self.media_tokens, self._served_alone)
        self.voice = Voice(
            decode=lambda tokens: str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)),
            defaults=self.defaults,
            stop_ids=self.stop_ids,
            context=self.context,
            grammars=grammars,
            spelling=TokenBytes(fast),
        )

    def _decoder(self, prefixes: PrefixCache | None, grammars: Grammars | None) -> VisionDecoder:
        return VisionDecoder(self.network, prefixes, grammars, self.shapes, look, self.trial, self.context)

    def _served_alone(self, why: str) -> None:
        self.batch.max_rows = self.max_rows = 1
        self.batch.room = Room(1)
        self.info.update(batch=1, alone=why)
        self.missing[BATCH.name] = why

    def warm_up(self) -> Iterator[None]:
        """Run the sizes that serving will meet, on rows of text that are thrown away."""
        token = next(token for token in range(self.vocabulary) if token not in self.media_tokens)

        def row(tokens: int) -> VisionRow:
            made = VisionRow([token] * tokens)
            made.sight = self.sight(Prompt(ids=made.prompt), remember=False)
            return made

        return warm_up(
            lambda: self._decoder(None, None),
            row,
            self.shapes,
            max_rows=self.max_rows,
            context=self.context,
            affords=self.batch.affords,
        )

    def sight(self, prompt: Prompt, *, remember: bool) -> Sight:
        """Makes the language model's inputs of a prompt; ``remember``: features of media may be kept."""
        return Sight(
            network=self.network,
            kind=self.kind,
            prompt=prompt,
            media_tokens=self.media_tokens,
            kept=self.features if remember and prompt.media else None,
        )

    @property
    def tags(self) -> tuple[str | None, ...]:
        """The texts that stand for media in a prompt."""
        return (self.image_tag, self.video_tag, self.audio_tag)

    @property
    def vocabulary(self) -> int:
        """Number of logits: at least the tokenizer's tokens."""
        named = text_config(self.config).get("vocab_size")
        return max(named if isinstance(named, int) else 0, len(tokenizer_of(self.processor)))

    def state(self) -> ModelState:
        """What is kept for requests to come, and whether fewer than usual are served together."""
        return self.batch.state()

    @property
    def _kept(self) -> int:
        """Bytes of prompts' caches and of media features."""
        return sum(item.nbytes for item in (self.prefixes, self.features) if item is not None)

    def trim(self, most: int) -> None:
        """Let go of caches until at most so many bytes are held: of prompts, then of media."""
        for kept in (self.prefixes, self.features):
            if kept is not None:
                kept.trim(max(0, kept.nbytes - (self._kept - most)))

    def close(self) -> None:
        """Let go of the weights and of every cache."""
        self.batch.close()
        self.aside.close()
        self.end_templates()
        for kept in (self.prefixes, self.features):
            if kept is not None:
                kept.clear()
        self.network = self.processor = None
        del self.trial


__all__ = ["VisionModel"]
