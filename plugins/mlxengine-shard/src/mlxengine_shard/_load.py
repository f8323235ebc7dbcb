"""Loading and serving: the language plugin's model, whose rows are decoded by the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve
from mlxengine import (
    Event,
    Feature,
    LoadContext,
    Loaded,
    ModelCard,
    ModelState,
    Request,
    RunContext,
    ScoreRequest,
    TextRequest,
)
from mlxengine.contract.features import FeatureRegistry, Features, Layer, Level
from mlxengine.errors import (
    CancelledError,
    FeatureUnavailableError,
    InvalidParameterError,
    LoadError,
    RankLostError,
    UnsupportedInputError,
)
from mlxengine.text.requests import LoadAdapterRequest, UnloadAdapterRequest
from mlxengine_llm import features as llm
from mlxengine_llm import plugin

from . import features
from ._transport import transport_of

_NOT_MIRRORED: dict[Feature[Any], str] = {
    llm.KV_BITS: "packed key-value caches are not mirrored on the ranks",
    llm.KV_TOKENS: "bounded key-value caches are not mirrored on the ranks",
    llm.SPECULATION: "guessed tokens are not mirrored on the ranks",
    llm.DRAFT_MODEL: "guessed tokens are not mirrored on the ranks",
    llm.PROMPT_CACHE_FOLDER: "caches of parts of a model are not written to disk",
}
_MEASURED_AT = 4096  # tokens


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Start the ranks, and build the model around them; its own weights are never read.

    Raises:
        FeatureUnavailableError: a flag is set that is not mirrored.
        LoadError: as `mlxengine.contract.hookspecs.HookSpecs.load_model` says.
    """
    flags = known(context.features)
    count = flags.get(features.RANKS)
    if count is None:
        raise InvalidParameterError(
            f"{card.id} is to be spread over ranks, and nobody says over how many.",
            hint='Load it with features={"shard.ranks": 2}.',
        )
    for flag, why in _NOT_MIRRORED.items():
        if flags.get(flag) != flag.off:
            raise FeatureUnavailableError(
                f"{flag.name} cannot be used with shard.ranks: {why}.",
                hint="Leave out one of them.",
            )
    transport = transport_of(context.device.backend, count)
    if transport == "nccl" and flags.get(features.SPLIT) == "pipeline":
        raise FeatureUnavailableError(
            "shard.split=pipeline sends from rank to rank, which mlx cannot on CUDA.",
            hint="Load it with shard.split=tensor.",
        )
    packed = flags.over(Layer(Level.LOAD, {llm.UNPACK.name: False}))
    loaded = plugin.load_model(card, evolve(context, features=packed))
    assert loaded is not None
    return _over_ranks(loaded, context, flags, count, transport)


def _over_ranks(loaded: Loaded, context: LoadContext, flags: Features, count: int, transport: str) -> Loaded:
    from mlxengine.toolkit import backend
    from mlxengine_llm.parts import LanguageModel

    from ._decoder import LeadingDecoder
    from ._ranks import Ranks, Settings

    model = loaded.model
    assert isinstance(model, LanguageModel)
    account = model.batch.account
    ranks = Ranks(
        Settings(
            path=str(context.path),
            ranks=count,
            split=flags.get(features.SPLIT),
            transport=transport,
            context=model.context,
            prefix_bytes=0 if model.prefixes is None else model.prefixes.budget,
            token_bytes=max(1, account.cost_of(_MEASURED_AT) // _MEASURED_AT),
            shape_seconds=backend.new_shape_seconds(),
        ),
        room=context.cache_room,
    )

    def opens() -> LeadingDecoder:
        seconds = flags.get(features.STEP_SECONDS)
        known = not model.shapes.costly
        decoder = LeadingDecoder(ranks, model.grammars, seconds, known, model.served_alone)
        model.info["pids"] = ranks.pids
        return decoder

    def state() -> ModelState:
        found = model.state()
        dead = ranks.dead()
        why = f"rank {dead[0]} has died; all are started again for the next request" if dead else None
        return evolve(found, degraded=why or found.degraded)

    def close() -> None:
        model.close()
        ranks.end("the model was closed")

    model.opens = opens
    model.kept.base = _Kept(ranks)  # type: ignore[assignment]
    model.info.update(ranks=count, split=ranks.settings.split, transport=transport)
    ranks.start()
    model.info["pids"] = ranks.pids
    return evolve(loaded, warm=_started(ranks, context), close=close, state=state, warm_up=None)


def _started(ranks: Any, context: LoadContext) -> Iterator[None]:
    """Until the ranks have read their weights."""
    try:
        while not ranks.poll(0.02):
            if context.cancelled():
                raise CancelledError("Loading was cancelled.")
            yield
    except RankLostError as error:
        raise LoadError(error.message) from error


class _Kept:
    """What the ranks keep of earlier prompts, as a `mlxengine.toolkit.adapter_rows.Keeps`."""

    def __init__(self, ranks: Any) -> None:
        self._ranks = ranks

    @property
    def nbytes(self) -> int:
        """Bytes held, in all ranks together."""
        return int(self._ranks.kept)

    def trim(self, most: int) -> None:
        """Let go of what is held until it is at most so many bytes."""
        if self._ranks.kept > most:
            try:
                self._ranks.call("trim", 30.0, most=most)
            except (RankLostError, MemoryError):
                assert not self._ranks.kept  # it went with them; the next step says so

    def clear(self) -> None:
        """Forget everything: the ranks do when they end."""


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: the language plugin's, without what is not mirrored."""
    adapter = isinstance(request, LoadAdapterRequest | UnloadAdapterRequest)
    adapter = adapter or (isinstance(request, TextRequest) and request.params.adapter is not None)
    if adapter:
        raise UnsupportedInputError(
            "This model is spread over ranks, where adapters are not mirrored.",
            hint="Merge the adapter with `mlxengine fuse`, then load the result.",
        )
    if isinstance(request, ScoreRequest):
        raise UnsupportedInputError(
            "This model is spread over ranks, where scoring of texts is not mirrored.",
            hint="Ask for logprobs of an answer, or load the model without shard.ranks.",
        )
    return plugin.generate(model, request, evolve(context, features=known(context.features)))


def known(flags: Features) -> Features:
    """The same flags, among them the language plugin's, also where that plugin is turned off."""
    names = {feature.name for feature in flags.registry}
    if llm.STREAMING.name in names:
        return flags
    registry = FeatureRegistry()
    for provider, listed in (("llm", llm.FEATURES), ("shard", features.FEATURES)):
        for feature in listed:
            registry.add(feature, provider)
    return Features(registry, flags.layers)


__all__ = ["load", "serve"]
