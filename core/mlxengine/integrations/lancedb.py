"""For LanceDB: ``get_registry().get("mlxengine").create(model="org/name")``, once this module is imported.

Needs lancedb: ``pip install "mlxengine[embed,lancedb]"``.
"""

from __future__ import annotations

from typing import Any

from ._needs import needs
from ._source import Source

with needs("LanceDB", "lancedb"):
    from lancedb.embeddings import TextEmbeddingFunction, register
    from pydantic import ConfigDict, PrivateAttr


@register("mlxengine")
class MLXEngineEmbeddings(TextEmbeddingFunction):  # type: ignore[misc]
    """Vectors of a column of texts, and of queries. A row without a text has no vector.

    Made by ``create``, whose arguments are stored with the table. An engine cannot be stored: give
    ``engine="$var:engine"`` and ``get_registry().set_var("engine", engine)`` in each process.

    Args:
        model: ``"org/name"``, ``"org/name@revision"``, or a folder; loaded when it is first needed.
        engine: what loads it; ``None`` is one that all adapters of the process share.
        query_prompt: put before queries; ``None`` is the model's own prompt for them, if it has one.
        document_prompt: the same for texts of the column.
        normalize: scale vectors to unit length; ``None`` does what the repository says.
        truncate_dim: keep the first dimensions only.
        batch_tokens: most padded tokens in one step.
        max_retries: how often LanceDB repeats what failed, with growing pauses: for remote services.

    Raises:
        InvalidParameterError: an argument of ours is out of range.
        pydantic.ValidationError: an argument is unknown or has the wrong type.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    engine: Any = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None
    batch_tokens: int | None = None
    max_retries: int = 0

    _source: Source = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._source = Source(
            self.model,
            self.engine,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            normalize=self.normalize,
            truncate_dim=self.truncate_dim,
            batch_tokens=self.batch_tokens,
        )

    def ndims(self) -> int:
        """Length of a vector; loads the model."""
        return self._source.dimension

    def compute_query_embeddings(self, query: str, *_args: Any, **_kwargs: Any) -> list[Any]:
        """The vector of a query, as a list of one."""
        return self._embed(query, "query")

    def generate_embeddings(self, texts: Any, *_args: Any, **_kwargs: Any) -> list[Any]:
        """One float32 vector a text; ``None`` for what is ``None``."""
        return self._embed(texts, "document")

    def _embed(self, texts: Any, purpose: str) -> list[Any]:
        asked = list(self.sanitize_input(texts))
        present = [text for text in asked if text is not None]
        vectors = iter(self._source.embed(present, purpose))
        return [None if text is None else next(vectors) for text in asked]


__all__ = ["MLXEngineEmbeddings"]
