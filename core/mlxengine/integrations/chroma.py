"""For Chroma: ``MLXEngineEmbeddingFunction("org/name")`` as a collection's ``embedding_function``.

It is registered as ``"mlxengine"`` once this module is imported: a stored collection then finds it again.
Needs chromadb: ``pip install "mlxengine[embed,chroma]"``.
"""

from __future__ import annotations

from typing import Any, Unpack

from ..contract._convert import only
from ..engine import InferenceEngine
from ..errors import InvalidParameterError
from ._needs import needs
from ._source import Source, VectorChoices

with needs("Chroma", "chroma"):
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function

_SPACES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}
_MAY_CHANGE = ("query_prompt", "batch_tokens")


class _Stored(VectorChoices, total=False):
    model: str


@register_embedding_function
class MLXEngineEmbeddingFunction(EmbeddingFunction[Documents]):  # type: ignore[misc]
    """Vectors of documents and of queries. All but the engine is kept with the collection.

    Args:
        model: ``"org/name"``, ``"org/name@revision"``, or a folder; loaded when it is first needed.
        engine: what loads it; ``None`` is one that all adapters of the process share.
        query_prompt: put before queries; ``None`` is the model's own prompt for them, if it has one.
        document_prompt: the same for documents.
        normalize: scale vectors to unit length; ``None`` does what the repository says.
        truncate_dim: keep the first dimensions only.
        batch_tokens: most padded tokens in one step.

    Raises:
        InvalidParameterError: an argument is unknown or out of range.
    """

    def __init__(
        self, model: str, *, engine: InferenceEngine | None = None, **choices: Unpack[VectorChoices]
    ) -> None:
        if not isinstance(model, str):
            raise InvalidParameterError(
                f"model must be a str, which is kept with the collection; found {model!r}.",
                hint="Give an engine of your own with engine=.",
            )
        self._source = Source(model, engine, **choices)
        self._config: dict[str, Any] = {"model": model, **choices}

    def __call__(self, input: Documents) -> Embeddings:
        """One vector a document."""
        return list(self._source.embed(input, "document"))

    def embed_query(self, input: Documents) -> Embeddings:
        """One vector a query."""
        return list(self._source.embed(input, "query"))

    @staticmethod
    def name() -> str:
        """What a stored collection knows it by."""
        return "mlxengine"

    def default_space(self) -> Space:
        """The model's own similarity; loads the model."""
        return _SPACES.get(str(self._source.handle.info.get("similarity")), "cosine")

    def supported_spaces(self) -> list[Space]:
        """All that Chroma has."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What is stored: the model's name and what was chosen."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> MLXEngineEmbeddingFunction:
        """The function that a stored collection names."""
        MLXEngineEmbeddingFunction.validate_config(config)
        return MLXEngineEmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Refuse what no function of this class has stored.

        Raises:
            InvalidParameterError: a key is unknown, or there is no model.
        """
        only(config, _Stored)
        if not isinstance(config.get("model"), str):
            raise InvalidParameterError(f"The stored configuration names no model: {config!r}.")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse what would make new vectors unlike those that are stored.

        Raises:
            InvalidParameterError: it names what may not change.
        """
        for key in sorted(old_config.keys() | new_config.keys()):
            if key not in _MAY_CHANGE and old_config.get(key) != new_config.get(key):
                raise InvalidParameterError(
                    f"{key} of a collection cannot change from {old_config.get(key)!r} to"
                    f" {new_config.get(key)!r}: its vectors were made with the former.",
                    hint="Make a new collection.",
                )


__all__ = ["MLXEngineEmbeddingFunction"]
