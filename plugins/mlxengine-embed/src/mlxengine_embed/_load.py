"""Loading: the encoder, its tokenizer, and what follows the encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve
from mlxengine import LoadContext, Loaded, ModelCard, Progress
from mlxengine.errors import CancelledError, IncompatibleWeightsError

from . import features
from ._claim import CPU_TOKENS, GPU_TOKENS
from ._late import METADATA, Late
from ._published import as_computed, named
from ._recipe import Dense, Normalize, Recipe, judges, read_recipe, read_scoring
from ._sight import sees


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Build a model whose weights ``Loaded.warm`` evaluates.

    Raises:
        LoadError: the architecture, the recipe or the weights cannot be used.
    """
    from mlxengine.toolkit.loading import building

    with building(card.id):
        return _load(card, context)


def _load(card: ModelCard, context: LoadContext) -> Loaded:
    _report(context, 0)
    import mlx.core as mx
    from mlxengine.toolkit.checkpoint import normalise_config
    from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu
    from mlxengine.toolkit.loading import warm

    from . import _static
    from ._blocks import use_cpu_blocks, use_gpu_blocks
    from ._encoders import build_encoder
    from ._rerank import is_reranker, label_names
    from ._weights import fill, read_folder

    _report(context, 1)
    if sees(card):
        from ._seeing import load_sight

        return load_sight(card, context)
    card = _with_metadata(named(card), context.path)
    reranks = is_reranker(card) or judges(card)
    recipe = read_scoring(card) if reranks else read_recipe(card)
    folder = context.path / recipe.folder
    config = {} if recipe.static else normalise_config(_encoder_config(card, recipe.folder))
    stored = read_folder(folder)
    encoder = _static.build(stored, card.id) if recipe.static else build_encoder(config)
    weights = encoder.prepare(stored)
    quantization = config.get("quantization") or config.get("quantization_config")
    fill(encoder.module, weights, encoder.rename, quantization, card.id)
    free = context.device.free_memory
    unpack_where_faster(encoder.module, free // 2 if free else None, on=("cpu",))
    upcast_for_cpu(encoder.module)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    replaced = ""
    if on_cpu and context.features.get(features.CPU_KERNELS):
        replaced = use_cpu_blocks(encoder.module)
    elif not on_cpu:
        use_gpu_blocks(encoder.module)
    tokenizer = _tokenizer(card, recipe, folder, encoder.positions)
    common: dict[str, Any] = {
        "id": card.id,
        "encoder": encoder,
        "tokenizer": tokenizer,
        "batch_tokens": CPU_TOKENS if on_cpu else GPU_TOKENS,
    }
    model, modules = (
        _reranker(card, config, recipe, weights, quantization, common)
        if reranks
        else _embedder(card, config, context.path, recipe, weights, quantization, common)
    )
    _report(context, 2)
    info = {
        "library": encoder.library.partition(".")[0],
        "encoder": encoder.library,
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.size,
        "max_length": tokenizer.max_length,
        "batch_tokens": model.batch_tokens,
        "cpu_kernels": replaced,
        "prompts": dict(recipe.prompts),
        "default_prompt": recipe.default_prompt,
    }
    if reranks:
        names = tuple(label_names(config, model.labels))
        info |= {"labels": names, "label_count": model.labels, "activation": model.activation}
    else:
        info |= describe(recipe, model.dimension)
    return Loaded(
        model=model,
        warm=chain.from_iterable(map(warm, (encoder.module, *modules))),
        close=model.close,
        info=info,
    )


def _embedder(
    card: ModelCard,
    config: Mapping[str, Any],
    root: Path,
    recipe: Recipe,
    weights: Mapping[str, Any],
    quantization: Any,
    common: dict[str, Any],
) -> tuple[Any, list[Any]]:
    from mlxengine.toolkit.dtype import upcast_for_cpu

    from ._m3 import Heads
    from ._model import EmbeddingModel
    from ._pool import build_stage
    from ._splade import build_terms, static_terms
    from ._tokenize import Tokenizer
    from ._weights import fill, read_folder

    if recipe.splade is not None:
        words = common["tokenizer"].terms(int(config["vocab_size"]))
        terms = build_terms(recipe.splade, config, common["encoder"], weights, words, card.id)
        upcast_for_cpu(terms.head)
        if recipe.query_terms:
            folder = root / recipe.query_terms
            reader = Tokenizer(folder, max_length=None, cap=None, lower_case=False)
            common["readers"] = {"query": reader}
            common["query_weights"] = static_terms(read_folder(folder), terms.count, card.id)
        found = EmbeddingModel(recipe=recipe, stages=(), dimension=terms.count, terms=terms, **common)
        return found, [terms.head]
    if recipe.late is not None:
        common |= _late(recipe.late, common["tokenizer"])
    size = common["encoder"].hidden_size * max(1, len(recipe.pooling))
    functions, modules = [], []
    for stage in recipe.stages:
        function = build_stage(stage)
        functions.append(function)
        if isinstance(stage, Normalize):
            continue
        if isinstance(stage, Dense):
            if stage.inputs != size:
                raise IncompatibleWeightsError(
                    f"{stage.folder} of {card.id} takes {stage.inputs} dimensions; it is given {size}."
                )
            size = stage.outputs
        # Converted repositories keep these tensors beside the encoder's, under the stage's own name.
        prefix = f"{stage.folder}."
        inside = {f"linear.{k.removeprefix(prefix)}": v for k, v in weights.items() if k.startswith(prefix)}
        stored = inside or read_folder(root / stage.folder)
        fill(function, stored, lambda key: key, quantization, stage.folder)
        upcast_for_cpu(function)
        modules.append(function)
    if recipe.further:
        heads = Heads(root / recipe.folder, recipe.further, common["encoder"].hidden_size, weights)
        upcast_for_cpu(heads)
        modules.append(heads)
        whole = common["tokenizer"].whole
        unused = [getattr(whole, f"{kind}_token_id") for kind in ("cls", "eos", "pad", "unk")]
        common |= {"heads": heads, "unused": np.array([token for token in unused if token is not None])}
        common["words"] = common["tokenizer"].terms(int(config["vocab_size"]))
    model = EmbeddingModel(recipe=recipe, stages=tuple(functions), dimension=size, **common)
    return model, modules


def _late(late: Late, tokenizer: Any) -> dict[str, Any]:
    """What a model that makes token vectors does to queries and documents."""
    tokenizer.register(late.prefixes)
    whole = tokenizer.whole
    filler = whole.convert_tokens_to_ids(late.filler) if late.filler else whole.mask_token_id
    filler = whole.eos_token_id if filler is None else filler
    if late.expansion and filler is None:
        raise IncompatibleWeightsError(
            "Queries are to be filled up, but the tokenizer has no mask token.",
            hint="The repository is incomplete.",
        )
    known = whole.get_vocab()
    skipped = [known[word] for word in late.skipped if word in known]
    return {
        "readers": {task: tokenizer.cut_to(late.longest(task)) for task in ("query", "document")},
        "filler": filler or 0,
        "skipped": np.array(skipped, dtype=np.int32) if skipped else None,
    }


def _reranker(
    card: ModelCard,
    config: Mapping[str, Any],
    recipe: Recipe,
    weights: Mapping[str, Any],
    quantization: Any,
    common: dict[str, Any],
) -> tuple[Any, list[Any]]:
    from mlxengine.toolkit.dtype import upcast_for_cpu

    from ._framing import Framing
    from ._model import RankModel
    from ._rerank import build_head, build_word_head, rename_head, score_activation
    from ._weights import fill

    judge, tokenizer = recipe.judge, common["tokenizer"]
    if judge is not None:
        words = tokenizer.token(judge.yes), None if judge.no is None else tokenizer.token(judge.no)
        framed = judge.template or (tokenizer.chat_template if judge.chat is None else judge.chat)
        model = RankModel(
            recipe=recipe,
            head=build_word_head(common["encoder"].module, config, weights, words, card.id),
            labels=1,
            activation=score_activation(card, 1, judge.activation),
            framing=Framing(judge, tokenizer, card.id) if framed else None,
            **common,
        )
        return model, [model.head]
    head, labels = build_head(config, common["encoder"].hidden_size, weights, card.id)
    fill(head, weights, rename_head, quantization, f"the scoring head of {card.id}")
    upcast_for_cpu(head)
    chosen = score_activation(card, labels)
    return RankModel(recipe=recipe, head=head, labels=labels, activation=chosen, **common), [head]


def _with_metadata(card: ModelCard, folder: Path) -> ModelCard:
    """The card with the settings of ColBERT's own layout, whose file's name is not that of a document."""
    path = folder / METADATA
    if not path.is_file():
        return card
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise IncompatibleWeightsError(f"{METADATA} of {card.id} cannot be read: {error}") from error
    return evolve(card, documents={**card.documents, METADATA: found})


def _encoder_config(card: ModelCard, folder: str) -> Mapping[str, Any]:
    config = card.documents.get(f"{folder}/config.json") if folder else card.config
    if not isinstance(config, Mapping) or not config:
        raise IncompatibleWeightsError(f"{card.id} has no config.json for its encoder.")
    return as_computed(card, config)


def _tokenizer(card: ModelCard, recipe: Recipe, folder: Path, positions: int | None) -> Any:
    from ._tokenize import Tokenizer

    wanted = card.configuration.context_length or recipe.max_length
    return Tokenizer(
        folder,
        max_length=wanted,
        cap=positions,
        lower_case=recipe.lower_case,
        special_tokens=not recipe.static,
    )


def describe(recipe: Recipe, dimension: int) -> dict[str, Any]:
    return {
        "dimension": min(dimension, recipe.truncate_dim or dimension),
        "full_dimension": dimension,
        "output": "tokens" if recipe.late else "sparse" if recipe.splade else "pooled",
        "further_outputs": recipe.further,
        "pooling": recipe.pooling,
        "normalize": recipe.normalizes,
        "similarity": recipe.similarity,
        **({"sparse_similarity": "dot"} if "sparse" in recipe.further else {}),
        "recipe": recipe.source,
    }


def _report(context: LoadContext, done: int) -> None:
    if context.cancelled():
        raise CancelledError("Loading was cancelled.")
    context.report(Progress(stage="load", done=done, total=2, unit="stages"))


__all__ = ["load"]
