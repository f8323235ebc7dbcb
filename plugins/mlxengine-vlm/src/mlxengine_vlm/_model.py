"""A loaded vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

from attrs import Factory, define, field
from mlxengine import ModelCard, ModelState
from mlxengine.toolkit.account import Account
from mlxengine.toolkit.adapter_rows import ByAdapter
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.answers import Voice
from mlxengine.toolkit.conversation import Prompts
from mlxengine.toolkit.estimate import text_config
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.prefix import PrefixCache, Shelf
from mlxengine.toolkit.room import Room
from mlxengine.toolkit.rows import SharedBatch
from mlxengine.toolkit.shapes import Shapes
from mlxengine.toolkit.speech import Dialect
from mlxengine.toolkit.templates import OwnTemplate
from mlxengine.toolkit.token_bytes import TokenBytes
from mlxengine.toolkit.warming import warm_up

from ._cache import FeatureCache
from ._decoder import VisionDecoder, VisionRow
from ._experts import EXPERTS
from ._language import KV, Language
from ._layers import LayerNames
from ._processor import bound, template_of, tokenizer_of
from ._prompt import prompts_of
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
        shelf: where caches of prompts outlive the process, or ``None``.
        kv: how key-value caches are packed.
        template: the chat template; the processor's own if left out.
        prompts: makes tokens of requests.
        processing: held by who uses the processor.
        preempts: see `SharedBatch`.
        cache_size: bytes of a request's cache of so many tokens.
        reserved, cache_room: see `mlxengine.LoadContext`.
        shapes: which sizes of passes the device has met.
        first_piece: see `SharedBatch`.
        max_rows: most requests that are decoded together.
        info, missing: see `mlxengine.Loaded`.
        adapters: LoRA and DoRA adapters that are loaded.
        language: runs the network's language model.
        trial: whether rows may share a pass.
        dialect: how the model writes reasoning and tool calls.
        prefixes: caches of earlier prompts, or ``None``.
        kept: ``prefixes``, and the same for each adapter in use.
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
    shelf: Shelf | None = None
    kv: KV = field(factory=KV)
    template: OwnTemplate = field(default=Factory(lambda self: bound(self.processor), takes_self=True))
    preempts: bool = False
    cache_size: Callable[[int], int] = field(default=lambda _tokens: 0)
    reserved: int = 0
    cache_room: Callable[[], int | None] = field(default=lambda: None)
    prompts: Prompts = field(init=False)
    processing: Lock = field(init=False, factory=Lock)
    shapes: Shapes = field(factory=Shapes)
    first_piece: int = Pace.FIRST
    info: dict[str, Any] = field(init=False, factory=dict)
    missing: dict[str, str] = field(init=False, factory=dict)
    adapters: Adapters = field(init=False)
    language: Language = field(init=False)
    trial: Trial = field(init=False)
    dialect: Dialect = field(init=False)
    batch: SharedBatch = field(init=False)
    voice: Voice = field(init=False)
    prefixes: PrefixCache | None = field(init=False)
    kept: ByAdapter[PrefixCache] = field(init=False)
    features: FeatureCache | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.adapters = Adapters(self.network, EXPERTS, LayerNames(self.network))
        self.language = Language(self.network, self.kv)
        budget, room = self.cache_bytes, self.cache_room
        self.prefixes = PrefixCache(budget, self.shelf, room) if budget else None
        self.kept = ByAdapter(self.prefixes, lambda: PrefixCache(budget // 4, room=room))
        self.features = FeatureCache(budget // 4, room) if budget else None
        tokenizer = tokenizer_of(self.processor)
        self.dialect = Dialect.of(tokenizer, template_of(self.processor) or "")
        self.prompts = prompts_of(self)
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
            lambda _rows: self._decoder(self.kept, grammars),
            max_rows=self.max_rows,
            relieve=lambda: self.trim(0),
            account=account,
            first_piece=self.first_piece,
            preempts=self.preempts,
        )
        self.trial = Trial(
            self.network, self.language, self.kind, self.media_tokens, self.adapters, self._served_alone
        )
        self.voice = Voice(
            decode=lambda tokens: str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False)),
            defaults=self.defaults,
            stop_ids=self.stop_ids,
            context=self.context,
            grammars=grammars,
            spelling=TokenBytes(fast),
        )

    def _decoder(
        self, prefixes: Callable[[str | None], PrefixCache | None], grammars: Grammars | None
    ) -> VisionDecoder:
        return VisionDecoder(
            self.language, self.adapters, prefixes, grammars, self.shapes, look, self.trial, self.context
        )

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
            lambda: self._decoder(lambda _adapter: None, None),
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
        return sum(item.nbytes for item in (self.kept, self.features) if item is not None)

    def trim(self, most: int) -> None:
        """Let go of caches until at most so many bytes are held: of prompts, then of media."""
        for kept in (self.kept, self.features):
            if kept is not None:
                kept.trim(max(0, kept.nbytes - (self._kept - most)))

    def close(self) -> None:
        """Let go of the weights and of every cache."""
        self.batch.close()
        self.prompts.close()
        for kept in (self.kept, self.features):
            if kept is not None:
                kept.clear()
        self.network = self.processor = None
        del self.trial, self.language


__all__ = ["VisionModel"]
