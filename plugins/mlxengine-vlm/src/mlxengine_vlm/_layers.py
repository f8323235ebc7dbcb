"""Which layers of a vision-language model an adapter means, whatever the library that it was trained with."""

from __future__ import annotations

from typing import Any

from mlxengine.errors import LoadError

_OUTER = frozenset({"model", "language_model", "text_model", "language", "llm", "thinker", "transformer"})
"""What libraries and checkpoints put around the layers of a language model."""


class LayerNames:
    """mlx-vlm's paths of the language model's layers.

    PEFT's adapters have transformers' paths, which changed over time (``language_model.model.layers.0``,
    ``model.language_model.layers.0``, ``model.text_model.layers.0``); those of mlx-lm for the language model
    by itself have ``model.layers.0``. They differ in what stands before, not in how a layer is called.

    Args:
        network: a model of mlx-vlm.
    """

    def __init__(self, network: Any) -> None:
        own = "language_model." if "language_model" in network else ""
        paths: list[str] = [path for path, _ in network.named_modules() if path.startswith(own)]
        self._paths = {_inner(path): path for path in paths}
        self._first = {inner.partition(".")[0] for inner in self._paths}

    def __call__(self, path: str) -> str:
        """mlx-vlm's path of a layer; the path itself where the language model has none like it.

        Raises:
            LoadError: it is a layer of another part of the model.
        """
        inner = _inner(path)
        if inner.partition(".")[0] not in self._first:
            raise LoadError(
                f"The adapter changes {path}, which is not in the language model.",
                hint="Only the language model's layers are adapted beside the weights: train those alone, or "
                "merge the adapter into the weights with the library that trained it.",
            )
        return self._paths.get(inner, path)


def _inner(path: str) -> str:
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in _OUTER:
        del parts[0]
    return ".".join(parts)


__all__ = ["LayerNames"]
