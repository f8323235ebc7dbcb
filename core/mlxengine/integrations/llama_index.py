"""For LlamaIndex: ``MLXEngineEmbedding(model_name="org/name")`` wherever a ``BaseEmbedding`` is wanted.

Needs llama-index-core: ``pip install "mlxengine[embed,llama-index]"``.
"""

from __future__ import annotations

from typing import Any

from ..engine import InferenceEngine
from ._needs import needs
from ._source import Source

with needs("LlamaIndex", "llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr


class MLXEngineEmbedding(BaseEmbedding):  # type: ignore[misc]
    """Vectors of nodes and of queries. Survives ``to_dict`` and ``from_dict``, all but its engine.

    Args:
        model_name: ``"org/name"``, ``"org/name@revision"``, or a folder; loaded when the first text comes.
        engine: what loads it; ``None`` is one that all adapters of the process share.
        query_prompt: put before queries; ``None`` is the model's own prompt for them, if it has one.
        document_prompt: the same for documents.
        normalize: scale vectors to unit length; ``None`` does what the repository says.
        truncate_dim: keep the first dimensions only.
        batch_tokens: most padded tokens in one step.

    Raises:
        InvalidParameterError: an argument of ours is out of range.
        pydantic.ValidationError: an argument has the wrong type.
    """

    model_name: str = Field(description="Repository id or folder.")
    query_prompt: str | None = Field(default=None, description="Put before queries.")
    document_prompt: str | None = Field(default=None, description="Put before documents.")
    normalize: bool | None = Field(default=None, description="Whether vectors have unit length.")
    truncate_dim: int | None = Field(default=None, description="Dimensions that are kept.")
    batch_tokens: int | None = Field(default=None, description="Most padded tokens in one step.")
    # The engine makes batches of its own: the more texts it sees at once, the less is padded.
    embed_batch_size: int = Field(default=2048, description="Texts of one request.", gt=0, le=2048)

    _source: Source = PrivateAttr()

    def __init__(self, model_name: str, *, engine: InferenceEngine | None = None, **fields: Any) -> None:
        super().__init__(model_name=model_name, **fields)
        self._source = Source(
            self.model_name,
            engine,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            normalize=self.normalize,
            truncate_dim=self.truncate_dim,
            batch_tokens=self.batch_tokens,
        )

    @classmethod
    def class_name(cls) -> str:
        """What ``to_dict`` writes down."""
        return "MLXEngineEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        found: list[float] = self._source.embed([query], "query")[0].tolist()
        return found

    async def _aget_query_embedding(self, query: str) -> list[float]:
        found: list[float] = (await self._source.aembed([query], "query"))[0].tolist()
        return found

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self._source.embed(texts, "document").tolist()
        return found

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = (await self._source.aembed(texts, "document")).tolist()
        return found


__all__ = ["MLXEngineEmbedding"]
