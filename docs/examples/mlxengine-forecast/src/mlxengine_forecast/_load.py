"""From a folder to a forecaster, and a folder with random weights to try it on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlxengine import LoadContext, Loaded, ModelCard
from mlxengine.errors import IncompatibleWeightsError

from ._batch import Forecaster


def _shapes(context: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "hidden.weight": (hidden, context),
        "hidden.bias": (hidden,),
        "out.weight": (1, hidden),
        "out.bias": (1,),
    }


def load(card: ModelCard, context: LoadContext) -> Loaded:
    """Map the weights; `warm` evaluates them on the scheduler's thread."""
    window, hidden = card.config.get("context"), card.config.get("hidden")
    if not (isinstance(window, int) and isinstance(hidden, int) and min(window, hidden) > 0):
        raise IncompatibleWeightsError(f"config.json of {card.id} must give context and hidden, from 1.")
    wanted = _shapes(window, hidden)
    try:
        weights: Any = mx.load(str(context.path / "model.safetensors"))
    except (OSError, RuntimeError, ValueError) as error:
        raise IncompatibleWeightsError(f"model.safetensors of {card.id} cannot be read: {error}.") from error
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != wanted:
        raise IncompatibleWeightsError(f"{card.id} has the tensors {found}, not {wanted}.")

    def warm() -> Iterator[None]:
        for value in weights.values():
            mx.eval(value)
            yield None

    model = Forecaster(weights, window)
    return Loaded(model=model, warm=warm(), close=model.close, info={"context": window})


def write_random_model(folder: Path, *, seed: int, context: int = 16, hidden: int = 32) -> Path:
    """Write a model with random weights, for trying things out; the folder.

    Args:
        folder: where; made if it is not there.
        seed: the same seed gives the same weights.
        context: how many values the network sees.
        hidden: how many units its hidden layer has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "tiny_forecaster", "context": context, "hidden": hidden}
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    keys = mx.random.split(mx.random.key(seed), 4)
    weights = {
        name: mx.random.normal(shape, scale=0.3, key=key)
        for key, (name, shape) in zip(keys, _shapes(context, hidden).items(), strict=True)
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder
