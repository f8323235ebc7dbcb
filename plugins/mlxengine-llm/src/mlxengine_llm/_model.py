"""A loaded language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import define, field
from mlxengine import MemoryEstimate, ModelCard, ModelState, TextWorkload
from mlxengine.toolkit.account import Account, reckoned
from mlxengine.toolkit.adapter_rows import ByAdapter
from mlxengine.toolkit.adapters import Adapters
from mlxengine.toolkit.answers import Voice
from mlxengine.toolkit.conversation import Prompts
from mlxengine.toolkit.estimate import estimator, text_config
from mlxengine.toolkit.grammar import Grammars
from mlxengine.toolkit.measuring import CacheSize
from mlxengine.toolkit.pace import Pace
from mlxengine.toolkit.prefix import PrefixCache
from mlxengine.toolkit.room import Room
from mlxengine.toolkit.rows import Decoder, Row, SharedBatch
from mlxengine.toolkit.shapes import Shapes
from mlxengine.toolkit.speech import Dialect
from mlxengine.toolkit.token_bytes import TokenBytes
from mlxengine.toolkit.warming import warm_up

from ._caches import Serving, caches_for
from ._chat import prompts_of
from ._decoder import BatchDecoder
from ._estimate import keeps
from ._experts import EXPERTS
from ._serial import SerialDecoder
from ._tokenizer import dialect_of
from ._trial import Trial
from .features import BATCH
from .library import module_of


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
        prefixes: caches of earlier prompts, or ``None``.
        grammars: compiles what answers must look like; ``None`` for a tokenizer that has no fast form.
        max_rows: most requests that are decoded together.
        preempts: see `SharedBatch`.
        stall_factor: see `SharedBatch`.
        serving: what has to be served one row at a time.
        draft: a smaller model's module that guesses tokens, or ``None``.
        cache_size: bytes of a request's cache as measured; ``None`` where only the arithmetic is known.
        reserved: bytes that were set aside for the caches of requests.
        room: see ``cache_room`` of `mlxengine.LoadContext`.
        backend: see `mlxengine.Device`.
        shapes: which sizes of passes the device has met.
        first_piece: see `SharedBatch`.
        opens: opens what decodes its rows where that is not done here.
        adapters: LoRA and DoRA adapters that are loaded.
        batch: the rows of all requests, whatever their adapter.
        trial: whether rows may share a pass.
        info: what ``handle.info`` shows.
        missing: features that it turns out not to have, with the reason.
        kept: ``prefixes``, and the same for each adapter in use.
        voice: what their answers have in common.
        prompts: makes tokens of requests.
        dialect: how the model writes reasoning and tool calls.
    """

    card: ModelCard
    network: Any
    tokenizer: Any
    config: dict[str, Any]
    context: int | None
    defaults: dict[str, Any]
    stop_ids: frozenset[int]
    prefixes: PrefixCache | None = None
    max_rows: int = 32
    preempts: bool = False
    stall_factor: float = 8.0
    serving: Serving = field(factory=Serving)
    draft: Any = None
    cache_size: CacheSize | None = None
    reserved: int = 0
    room: Callable[[], int | None] = field(default=lambda: None)
    backend: str | None = None
    shapes: Shapes = field(factory=Shapes)
    first_piece: int = Pace.FIRST
    opens: Callable[[], Decoder] | None = None
    estimate: Callable[[TextWorkload], MemoryEstimate] = field(init=False)
    grammars: Grammars | None = field(init=False)
    adapters: Adapters = field(init=False)
    info: dict[str, Any] = field(init=False, factory=dict)
    missing: dict[str, str] = field(init=False, factory=dict)
    trial: Trial = field(init=False)
    batch: SharedBatch = field(init=False)
    kept: ByAdapter[PrefixCache] = field(init=False)
    voice: Voice = field(init=False)
    prompts: Prompts = field(init=False)
    dialect: Dialect = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.estimate = estimator(self.card, keeps(module_of(self.config)))
        self.grammars = _grammars(self.tokenizer, self.vocabulary, self.stop_ids)
        self.adapters = Adapters(self.network, EXPERTS)
        self.kept = ByAdapter(self.prefixes, self._prefixes_of_adapter)
        self.dialect = dialect_of(self.tokenizer)
        reasons = self.dialect.reasons
        self.prompts = prompts_of(self.tokenizer, self.card.id, self.context, reasons=reasons)
        account = Account(
            bytes_of=self.cache_size or reckoned(self.estimate, self.serving.kv_bits, self.backend),
            reserved=self.reserved,
            room=self.room,
            kept=lambda: self.kept.nbytes,
            trim=self.trim,
        )
        self.batch = SharedBatch(
            self._decoder,
            max_rows=1 if self.serving.serial else self.max_rows,
            stall_factor=self.stall_factor,
            relieve=lambda: self.trim(0),
            account=account,
            first_piece=self.first_piece,
            preempts=self.preempts,
        )
        self.trial = Trial(self.network, self.adapters, self._caches, self.served_alone)
        self.voice = Voice(
            decode=_decode(self.tokenizer),
            defaults=self.defaults,
            stop_ids=self.stop_ids,
            context=self.context,
            grammars=self.grammars,
            spelling=TokenBytes(getattr(self.tokenizer, "backend_tokenizer", None)),
        )

    def _caches(self) -> list[Any]:
        return caches_for(self.network, self.serving)

    def served_alone(self, why: str) -> None:
        """Rows cannot decode together, for that reason."""
        self.batch.max_rows = 1
        self.batch.room = Room(1)
        self.info.update(batch=1, alone=why)
        self.missing[BATCH.name] = why

    def _decoder(self, _rows: int) -> Decoder:
        if self.opens is not None:
            return self.opens()
        if self.serving.serial:
            return SerialDecoder(self.network, self.serving, self.adapters, self.kept, self.draft)
        return BatchDecoder(
            self.network,
            self.adapters,
            self.kept,
            self._caches,
            self.shapes,
            self.trial,
            self.grammars,
            self.context,
        )

    def _prefixes_of_adapter(self) -> PrefixCache:
        assert self.prefixes is not None
        return PrefixCache(self.prefixes.budget // 4, room=self.prefixes.room)

    def state(self) -> ModelState:
        """What is kept for prompts to come, and whether fewer requests than usual are served together."""
        return self.batch.state()

    def trim(self, most: int) -> None:
        """Let go of prompts' caches until at most so many bytes are held, those of adapters first."""
        self.kept.trim(most)

    def warm_up(self) -> Iterator[None]:
        """Run the sizes that serving will meet, on rows that are thrown away."""
        return warm_up(
            lambda: self._decoder(self.batch.max_rows),
            lambda tokens: Row([0] * tokens),
            self.shapes,
            max_rows=self.batch.max_rows,
            context=self.context,
            affords=self.batch.affords,
        )

    @property
    def vocabulary(self) -> int:
        """Number of logits: at least the tokenizer's tokens."""
        named = text_config(self.config).get("vocab_size")
        return max(named if isinstance(named, int) else 0, len(self.tokenizer))

    def close(self) -> None:
        """Let go of the weights and of every cache."""
        self.batch.close()
        self.kept.clear()
        self.prompts.close()
        self.network = self.tokenizer = self.draft = None
        del self.trial


def _decode(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Token ids to text. transformers' own way around a fast tokenizer takes most of the time of it."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        return lambda tokens: str(fast.decode(tokens, skip_special_tokens=False))
    return lambda tokens: str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def _grammars(tokenizer: Any, vocabulary: int, stop_ids: frozenset[int]) -> Grammars | None:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None or not stop_ids:
        return None
    return Grammars(fast.to_str, vocabulary, stop_ids)


__all__ = ["LanguageModel"]
