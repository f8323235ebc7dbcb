"""Loading: mlx-vlm's modules, built lazily and strictly, with a processor that runs no foreign code."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlxengine import LoadContext, Loaded, ModelCard, Progress
from mlxengine.errors import CancelledError, FeatureUnavailableError, LoadError
from mlxengine.toolkit.account import reckoned
from mlxengine.toolkit.estimate import USUAL_CONTEXT, context_length, estimator
from mlxengine.toolkit.folders import adapter_folder
from mlxengine.toolkit.loading import (
    building,
    check_safetensors,
    descriptor_limit_kept,
    first_piece,
    generation_defaults,
    most_rows,
    warm,
)
from mlxengine.toolkit.templates import TemplateBoundError

from . import features

if TYPE_CHECKING:
    from mlxengine.toolkit.measuring import CacheSize
    from mlxengine.toolkit.prefix import Shelf

    from ._language import KV

_log = logging.getLogger("mlxengine.vlm")
_VIDEO_TOKENS = frozenset({"video_token_id", "video_token_index"})
_MEDIA_TOKENS = (
    "image_token_id",
    "image_token_index",
    *_VIDEO_TOKENS,
    "audio_token_id",
    "audio_token_index",
)


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Build the model; its weights are evaluated later, by ``Loaded.warm``.

    Raises:
        LoadError, CorruptFileError: as `mlxengine.contract.hookspecs.HookSpecs.load_model` says.
    """
    with building(card.id):
        return _load(card, context)


def _load(card: ModelCard, context: LoadContext) -> Loaded:
    if context.configuration.adapter is not None:
        context.features.require(features.LORA)
    _report(context, 0)
    with descriptor_limit_kept():
        import mlx_vlm
    from mlxengine.toolkit import backend
    from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu
    from mlxengine.toolkit.shapes import Shapes

    from ._checkpoint import normalise
    from ._claim import library_name
    from ._model import VisionModel
    from ._network import build
    from ._processor import bound, load_processor, tokenizer_of

    _report(context, 1)
    for file in sorted(context.path.glob("*.safetensors")):
        check_safetensors(file)
    network = build(context.path, card.config)
    if context.features.get(features.UNPACK):
        unpack_where_faster(network, (context.device.free_memory or 0) // 2)
    upcast_for_cpu(network)
    _report(context, 2)
    config = normalise(card.config)
    processor = load_processor(
        context.path,
        trust_remote_code=context.configuration.trust_remote_code,
        chat_template=context.configuration.chat_template,
    )
    tokenizer = tokenizer_of(processor)
    template = bound(processor)
    tags = _tags(processor, tokenizer, config)
    takes = _takes(network, processor, context, config)
    cached = context.features.get(features.PROMPT_CACHE)
    kind = library_name(str(config["model_type"])) or str(config["model_type"])
    media_tokens = frozenset(config[name] for name in _MEDIA_TOKENS if isinstance(config.get(name), int))
    longest = context.configuration.context_length or context_length(config)
    kv, why = _kv(context, network, kind, media_tokens)
    size = _cache_size(network, kind, media_tokens, kv)
    usual = None if size is None else size(min(longest or USUAL_CONTEXT, USUAL_CONTEXT))
    model = VisionModel(
        card=card,
        kind=kind,
        network=network,
        processor=processor,
        config=config,
        context=longest,
        defaults=generation_defaults(card),
        stop_ids=_stop_ids(card, tokenizer, config, context.configuration.extra_eos_tokens),
        media_tokens=media_tokens,
        image_token=config.get("image_token_index"),
        image_tag=tags["image"],
        video_tag=tags["video"],
        audio_tag=tags["audio"],
        takes=takes,
        template_takes_parts=any(tags.values()),
        cache_bytes=context.features.get(features.PROMPT_CACHE_MB) * 2**20 if cached else 0,
        shelf=_shelf(card, context, network, tokenizer, kv) if cached else None,
        kv=kv,
        max_rows=_max_rows(context),
        preempts=context.features.get(features.PREEMPTION),
        cache_size=size or reckoned(estimator(card), kv.bits, context.device.backend),
        reserved=context.reserved if usual is None else usual,
        cache_room=context.cache_room,
        template=template,
        shapes=Shapes(backend.new_shape_seconds()),
        first_piece=first_piece(network, context.device.backend),
    )
    model.info.setdefault("batch", model.max_rows)
    model.info.update(
        library=f"mlx-vlm {mlx_vlm.__version__}",
        architecture=model.kind,
        vocabulary=len(tokenizer),
        context_length=model.context,
        takes=", ".join(sorted(takes)) or "text",
    )
    if why is not None:
        model.missing[features.KV_BITS.name] = why
    if context.configuration.adapter is not None:
        folder = adapter_folder(context.configuration.adapter, context.fetch)
        model.adapters.configured("default", folder)
    names = {"image": "vision", "video": "video", "audio": "audio"}
    found = {names[what] for what in takes} | model.dialect.abilities
    return Loaded(
        model=model,
        warm=itertools.chain(warm(network), _tried(model)),
        close=model.close,
        capabilities=frozenset(found),
        info=model.info,
        missing=model.missing,
        cache=usual,
        state=model.state,
        trim=model.trim,
        setup=model.adapters.setup,
        warm_up=model.warm_up,
    )


def _kv(context: LoadContext, network: Any, kind: str, media_tokens: frozenset[int]) -> tuple[KV, str | None]:
    """How caches are packed, and why they could not be."""
    from ._language import KV, packing

    bits = context.features.get(features.KV_BITS)
    try:
        return KV(bits, packing(network, kind, media_tokens).group_size(bits or 8)), None
    except FeatureUnavailableError as error:
        if bits is not None:
            raise
        return KV(), error.message


def _shelf(card: ModelCard, context: LoadContext, network: Any, tokenizer: Any, kv: KV) -> Shelf | None:
    import mlx_vlm
    from mlxengine.toolkit.shelf import shelf_for

    from ._language import Language

    return shelf_for(
        context.features.get(features.PROMPT_CACHE_FOLDER),
        card,
        network=network,
        tokenizer=tokenizer,
        caches=Language(network, kv).caches,
        settings=(mlx_vlm.__version__, kv.bits),
    )


def _cache_size(network: Any, kind: str, media_tokens: frozenset[int], kv: KV) -> CacheSize | None:
    """Bytes of a request's cache, measured on passes over text; ``None`` where only arithmetic tells."""
    from mlxengine.toolkit.measuring import measured

    from ._language import Language
    from ._sight import Prompt, Sight

    language = Language(network, kv)
    token = next(token for token in itertools.count() if token not in media_tokens)

    def run(tokens: int, layers: list[Any]) -> object:
        prompt = Prompt(ids=[token] * tokens)
        plan = Sight(network=network, kind=kind, prompt=prompt, media_tokens=media_tokens)()
        return language.read([plan.take(tokens)], tokens, layers)

    try:
        return measured(run, language.caches)
    except Exception as error:
        _log.info("The size of its caches is reckoned, not measured: %r", error)
        return None


def _tried(model: Any) -> Iterator[None]:
    """Packed caches are tried; where new shapes are dear no request waits for those of the trial either."""
    from ._language import packing

    kv = model.kv
    if kv.bits is not None:
        yield from packing(model.network, model.kind, model.media_tokens).check(kv.bits, kv.group)
    if model.shapes.costly:
        model.trial.hold()
        yield


def _max_rows(context: LoadContext) -> int:
    if not context.features.get(features.BATCH):
        return 1
    chosen: int | None = context.features.get(features.MAX_BATCH)
    return chosen or most_rows(context.device.backend)


def _report(context: LoadContext, done: int) -> None:
    if context.cancelled():
        raise CancelledError("Loading was cancelled.")
    context.report(Progress(stage="load", done=done, total=2, unit="stages"))


def _takes(network: Any, processor: Any, context: LoadContext, config: Mapping[str, Any]) -> frozenset[str]:
    """What a request may bring: what the network has an encoder for, the processor a part, and a flag."""
    from ._processor import takes

    found = set()
    towers = ("vision_tower", "vision_model", "vision_encoder", "vision", "vpm", "vision_embed_tokens")
    blind = "vision_tower" in network and network.vision_tower is None
    sees = not blind and (bool(config.get("vision_config")) or any(name in network for name in towers))
    if sees and takes(processor, "image") and context.features.get(features.MULTI_MODAL):
        found.add("image")
        if _VIDEO_TOKENS & config.keys() and takes(processor, "video"):
            found.add("video")
    hears = config.get("audio_config") and ("audio_tower" in network or hasattr(network, "audio_tower"))
    if hears and takes(processor, "audio") and context.features.get(features.AUDIO):
        found.add("audio")
    return frozenset(found)


def _tags(processor: Any, tokenizer: Any, config: Mapping[str, Any]) -> dict[str, str | None]:
    """The text that the chat template writes for each kind of media, found by asking it."""
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    found: dict[str, str | None] = {}
    for what in ("image", "video", "audio"):
        found[what] = None
        names = (f"{what}_token", "boi_token") if what == "image" else ()
        candidates = [getattr(processor, name, None) for name in names]
        for name in (f"{what}_token_id", f"{what}_token_index"):
            token = config.get(name)
            if isinstance(token, int) and 0 <= token < len(tokenizer):
                candidates.append(tokenizer.convert_ids_to_tokens(token))
        if template is None:
            continue
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": [{"type": what}, {"type": "text", "text": "?"}]}],
                chat_template=template if isinstance(template, str) else None,
                tokenize=False,
            )
        except TemplateBoundError:  # it would take as long for each of them
            return dict.fromkeys(("image", "video", "audio"))
        except Exception:  # a template may refuse what its model does not take
            continue
        tags = [tag for tag in candidates if isinstance(tag, str) and text.count(tag) == 1]
        found[what] = tags[0] if tags else None
    return found


def _stop_ids(
    card: ModelCard, tokenizer: Any, config: Mapping[str, Any], extra: tuple[str, ...]
) -> frozenset[int]:
    generation = card.documents.get("generation_config.json")
    stated = {"config.json": config, "text_config of config.json": config.get("text_config")}
    found: set[int] = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    for file, part in {**stated, "generation_config.json": generation}.items():
        item = part.get("eos_token_id") if isinstance(part, Mapping) else None
        ids = item if isinstance(item, list | tuple) else () if item is None else (item,)
        if not all(isinstance(token, int) for token in ids):
            raise LoadError(
                f"eos_token_id in {file} is {str(item)[:60]!r}, which is no token's number.",
                hint="Compare it with that of the original repository.",
            )
        found.update(ids)
    vocabulary = tokenizer.get_vocab()
    for name in extra:
        if name not in vocabulary:
            raise LoadError(f"extra_eos_tokens: {name!r} is not a token of this model.")
        found.add(vocabulary[name])
    return frozenset(found)


__all__ = ["load"]
