"""Loading a model that sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlxengine import LoadContext, Loaded, ModelCard
from mlxengine.toolkit.dtype import unpack_where_faster, upcast_for_cpu
from mlxengine.toolkit.loading import warm

from . import _colpali, _towers
from ._claim import CPU_TOKENS, GPU_TOKENS
from ._colpali import ColPali, Questions
from ._eye import Eye, build_processor
from ._load import describe
from ._model import EmbeddingModel
from ._pool import normalize
from ._sight import read_sight
from ._tokenize import Tokenizer
from ._towers import Towers
from ._weights import fill, read_folder


def load_sight(card: ModelCard, context: LoadContext) -> Loaded:
    """Build a model whose weights ``Loaded.warm`` evaluates.

    Raises:
        LoadError: a file of the repository cannot be used.
    """
    sight = read_sight(card)
    recipe, folder = sight.recipe, context.path / sight.recipe.folder
    late = sight.kind == "colpali"
    network: Any = ColPali(sight) if late else Towers(sight)
    config = card.documents.get(f"{recipe.folder}/config.json", card.config)
    quantization = config.get("quantization") if isinstance(config, Mapping) else None
    layout = _colpali if late else _towers
    fill(network, layout.prepare(read_folder(folder)), layout.rename, quantization, card.id)
    free = context.device.free_memory
    unpack_where_faster(network, free // 2 if free else None, on=("cpu",))
    upcast_for_cpu(network)
    lengths: dict[str, Any] = {
        "max_length": card.configuration.context_length or recipe.max_length,
        "cap": sight.text["max_position_embeddings"],
    }
    tokenizer = (
        Questions(folder, prefix=sight.asking, **lengths)
        if late
        else Tokenizer(folder, lower_case=False, **lengths)
    )
    whole, siglip = tokenizer.whole, sight.kind == "siglip"
    ending = tokenizer.encode_plain([f"{whole.bos_token}{sight.showing}\n"]) if late else []
    model = EmbeddingModel(
        id=card.id,
        encoder=None,
        tokenizer=tokenizer,
        recipe=recipe,
        stages=tuple(normalize for _ in recipe.stages),
        dimension=sight.dimension,
        batch_tokens=CPU_TOKENS if mx.default_device().type == mx.DeviceType.cpu else GPU_TOKENS,
        eye=Eye(
            processor=build_processor(sight),
            ids=np.concatenate([np.zeros(sight.places, dtype=np.int32), *ending]),
            network=network,
            filler=whole.pad_token_id or 0,
            length=tokenizer.max_length if siglip else None,
            left=siglip and whole.padding_side == "left",
            hides=siglip and "attention_mask" in whole.model_input_names,
        ),
    )
    info = {
        "library": "mlxengine_embed",
        "encoder": type(network).__module__,
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.size,
        "max_length": tokenizer.max_length,
        "batch_tokens": model.batch_tokens,
        "prompts": dict(recipe.prompts),
        "default_prompt": recipe.default_prompt,
        "image_size": sight.vision["image_size"],
        **describe(recipe, sight.dimension),
    }
    return Loaded(model=model, warm=warm(network), close=model.close, info=info)


__all__ = ["load_sight"]
