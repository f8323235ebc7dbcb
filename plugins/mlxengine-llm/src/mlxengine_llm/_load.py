"""Loading: mlx-lm's modules, built lazily and strictly from files that were checked first."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from mlxengine import LoadContext, Loaded, ModelCard, Progress
from mlxengine.errors import (
    CancelledError,
    CorruptFileError,
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    LoadError,
    MLXEngineError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.estimate import USUAL_CONTEXT, context_length
from mlxengine.toolkit.folders import adapter_folder, local_folder
from mlxengine.toolkit.loading import (
    building,
    check_safetensors,
    descriptor_limit_kept,
    first_piece,
    generation_defaults,
    most_rows,
    warm,
)

from . import features
from ._caches import Serving, caches_for, packing, widen
from ._claim import is_gguf
from ._tokenizer import REMOTE, abilities, load_tokenizer, stop_ids

_log = logging.getLogger("mlxengine.llm.load")


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
        import mlx_lm.utils
    from mlxengine.toolkit import backend
    from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu
    from mlxengine.toolkit.shapes import Shapes

    from ._model import LanguageModel

    _report(context, 1)
    build = _from_gguf if is_gguf(card) else _from_folder
    network, tokenizer, config = build(card, context)
    unpacked = None
    if context.features.get(features.UNPACK):
        unpacked = unpack_where_faster(network, (context.device.free_memory or 0) // 2)
    upcast_for_cpu(network)
    widen(network)
    serving, why = _serving(context, network)
    draft = None if serving.draft_model is None else _draft(card, context, serving.draft_model, tokenizer)
    _report(context, 2)
    own = context.configuration.context_length
    longest = own or context_length(config)
    size = _cache_size(network, serving)
    usual = None if size is None else size(min(longest or USUAL_CONTEXT, USUAL_CONTEXT))
    model = LanguageModel(
        card=card,
        network=network,
        tokenizer=tokenizer,
        config=config,
        context=longest,
        defaults=generation_defaults(card),
        stop_ids=stop_ids(tokenizer, context.configuration.extra_eos_tokens),
        prefixes=_prefixes(card, context, network, tokenizer, serving),
        serving=serving,
        draft=draft,
        cache_size=size,
        reserved=context.reserved if usual is None else usual,
        room=context.cache_room,
        backend=context.device.backend,
        shapes=Shapes(backend.new_shape_seconds()),
        first_piece=first_piece(network, context.device.backend),
        stall_factor=context.features.get(features.STALL_FACTOR),
        max_rows=_max_rows(context),
        preempts=context.features.get(features.PREEMPTION),
    )
    model.info.setdefault("batch", 1 if model.serving.serial else model.max_rows)
    model.info.update(
        library=f"mlx-lm {mlx_lm.__version__}",
        vocabulary=len(tokenizer),
        context_length=model.context,
        **({} if unpacked is None else {"weights": unpacked}),
    )
    if why is not None:
        model.missing[features.KV_BITS.name] = why
    if context.configuration.adapter is not None:
        folder = adapter_folder(context.configuration.adapter, context.fetch)
        model.adapters.configured("default", folder)
    return Loaded(
        model=model,
        warm=itertools.chain(warm(network), () if draft is None else warm(draft), _tried(model)),
        close=model.close,
        capabilities=abilities(tokenizer),
        info=model.info,
        missing=model.missing,
        cache=usual,
        state=model.state,
        trim=model.trim,
        setup=model.adapters.setup,
        warm_up=model.warm_up,
    )


def _cache_size(network: Any, serving: Serving) -> Any:
    import mlx.core as mx
    from mlxengine.toolkit.measuring import measured

    def run(tokens: int, layers: list[Any]) -> object:
        return network(mx.zeros((1, tokens), mx.int32), cache=layers)

    try:
        return measured(run, lambda: caches_for(network, serving))
    except Exception as error:
        _log.info("The size of its caches is reckoned, not measured: %r", error)
        return None


def _tried(model: Any) -> Iterator[None]:
    """Packed caches are tried; where new shapes are dear no request waits for those of the trial either."""
    serving = model.serving
    if serving.kv_bits is not None:
        yield from packing(model.network).check(serving.kv_bits, serving.kv_group)
    if model.shapes.costly and not model.serving.serial:
        model.trial.hold()
        yield


def _max_rows(context: LoadContext) -> int:
    if not context.features.get(features.BATCH):
        return 1
    chosen: int | None = context.features.get(features.MAX_BATCH)
    return chosen or most_rows(context.device.backend)


def _serving(context: LoadContext, network: Any) -> tuple[Serving, str | None]:
    """What the flags ask for, and why packed caches could not be asked for."""
    found = Serving(**{name: context.features.get(flag) for name, flag in features.SERVING.items()})
    if found.kv_tokens is not None and (not isinstance(found.kv_tokens, int) or found.kv_tokens < 16):
        raise InvalidParameterError(f"llm.kv_tokens={found.kv_tokens!r} must be an integer from 16.")
    if found.speculation and found.draft_model is not None:
        raise FeatureUnavailableError(
            "llm.speculation and llm.draft_model cannot be used together.", hint="Choose one of them."
        )
    caches_for(network, found)  # refused now, not at the first request
    try:
        return evolve(found, kv_group=packing(network).group_size(found.kv_bits or 8)), None
    except FeatureUnavailableError as error:
        if found.kv_bits is not None:
            raise
        return found, error.message


def _draft(card: ModelCard, context: LoadContext, source: str, tokenizer: Any) -> Any:
    """The smaller model, whose guesses are checked by this one."""
    from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
    from mlx_lm.tokenizer_utils import load as load_wrapper
    from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu

    from ._claim import FILES
    from .convert import load_network

    folder = local_folder(source, context.fetch, FILES, "draft model")
    network, _ = load_network(folder)
    words = load_wrapper(folder, {"trust_remote_code": False}).get_vocab()
    if words != tokenizer.get_vocab():
        raise IncompatibleWeightsError(
            f"The draft model {source} has another vocabulary than {card.id}.",
            hint="Choose a smaller model of the same family.",
        )
    if not can_trim_prompt_cache(make_prompt_cache(network)):
        raise FeatureUnavailableError(
            f"The draft model {source} cannot take guesses back: its caches cannot be cut.",
            hint="Choose a draft model with plain attention.",
        )
    if context.features.get(features.UNPACK):
        unpack_where_faster(network, (context.device.free_memory or 0) // 4)
    upcast_for_cpu(network)
    return network


def _report(context: LoadContext, done: int) -> None:
    if context.cancelled():
        raise CancelledError("Loading was cancelled.")
    context.report(Progress(stage="load", done=done, total=2, unit="stages"))


def _from_folder(card: ModelCard, context: LoadContext) -> tuple[Any, Any, dict[str, Any]]:
    from mlx_lm.utils import load_config, load_model
    from mlxengine.toolkit.checkpoint import normalise_config

    folder = context.path
    trust = context.configuration.trust_remote_code
    try:
        config = normalise_config(load_config(folder))
    except (OSError, ValueError) as error:
        raise CorruptFileError(
            f"config.json of {card.id} cannot be read: {error}.", hint="Fetch the model again."
        ) from error
    if config.get("model_file") and not trust:
        raise RemoteCodeRefusedError(f"{card.id} wants to run {config['model_file']}.", hint=REMOTE)
    for file in sorted(folder.glob("model*.safetensors")):
        check_safetensors(file)
    _check_shards(card, folder)
    try:
        network, config = load_model(folder, lazy=True, model_config=config, trust_remote_code=trust)
    except MLXEngineError:
        raise
    except Exception as error:
        raise _load_error(card, error) from error
    return network, load_tokenizer(card, folder, context, config), config


def _from_gguf(card: ModelCard, context: LoadContext) -> tuple[Any, Any, dict[str, Any]]:
    from mlxengine.toolkit.checkpoint import normalise_config
    from mlxengine.toolkit.gguf import read_gguf
    from mlxengine.toolkit.gguf_support import choose_file

    found = context.path
    if found.is_dir():
        chosen = choose_file([path.relative_to(found).as_posix() for path in found.rglob("*.gguf")])
        found /= chosen or ""
    if not found.is_file():
        raise LoadError(f"{card.id} has no GGUF file in {context.path}.", hint="Fetch the model again.")
    checkpoint = read_gguf(found)
    config = normalise_config(checkpoint.config)
    try:
        network = _build(config, checkpoint.weights)
    except Exception as error:
        raise _load_error(card, error) from error
    with tempfile.TemporaryDirectory(prefix="mlxengine-") as folder:
        checkpoint.write_files(Path(folder))
        tokenizer = load_tokenizer(card, Path(folder), context, config)
    return network, tokenizer, config


def _build(config: dict[str, Any], weights: dict[str, Any]) -> Any:
    """mlx-lm's module of a configuration with the given weights, some of them packed."""
    import mlx.nn as nn
    from mlx_lm.utils import _get_classes

    network_class, args_class = _get_classes(config)
    network = network_class(args_class.from_dict(config))
    if hasattr(network, "sanitize"):
        weights = network.sanitize(weights)
    settings = config.get("quantization")
    if settings:

        def packed(path: str, module: Any) -> Any:
            if not hasattr(module, "to_quantized") or f"{path}.scales" not in weights:
                return False
            return settings.get(path, True)

        nn.quantize(network, settings["group_size"], settings["bits"], class_predicate=packed)
    network.eval()
    network.load_weights(list(weights.items()), strict=True)
    return network


def _prefixes(card: ModelCard, context: LoadContext, network: Any, tokenizer: Any, serving: Serving) -> Any:
    import mlx_lm
    from mlxengine.toolkit.prefix import PrefixCache
    from mlxengine.toolkit.shelf import shelf_for

    if not context.features.get(features.PROMPT_CACHE):
        return None
    budget = context.features.get(features.PROMPT_CACHE_MB) << 20
    if context.device.free_memory is not None:
        budget = min(budget, context.device.free_memory // 8)
    shelf = shelf_for(
        context.features.get(features.PROMPT_CACHE_FOLDER),
        card,
        network=network,
        tokenizer=tokenizer,
        caches=lambda: caches_for(network, serving),
        settings=(mlx_lm.__version__, serving.kv_bits, serving.kv_tokens),
    )
    return PrefixCache(budget, shelf, context.cache_room)


def _check_shards(card: ModelCard, folder: Path) -> None:
    index = card.documents.get("model.safetensors.index.json")
    names = set(index.get("weight_map", {}).values()) if isinstance(index, Mapping) else set()
    missing = sorted(name for name in names if not folder.joinpath(name).exists())
    if missing:
        raise IncompatibleWeightsError(
            f"{card.id} lacks the weight files {', '.join(missing)}.", hint="Fetch the model again."
        )


def _load_error(card: ModelCard, error: Exception) -> LoadError:
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return IncompatibleWeightsError(f"{card.id} has no weights: {text}.")
    if "not supported" in text and "Model type" in text:
        return UnsupportedArchitectureError(f"{card.id}: {text}")
    if text.startswith(("Received", "Missing", "Expected shape", "Expected mx.array")):
        return IncompatibleWeightsError(
            f"The weights of {card.id} do not fit its configuration. {text}",
            hint="The repository is damaged, or was made for another library.",
        )
    return LoadError(f"{card.id} cannot be built: {type(error).__name__}: {text}.")


__all__ = ["load"]
