"""For LangChain: ``MLXEngineEmbeddings("org/name")`` wherever an ``Embeddings`` is wanted.

Needs langchain-core: ``pip install "mlxengine[embed,langchain]"``.
"""

from __future__ import annotations

from typing import Unpack

from ..engine import InferenceEngine
from ._needs import needs
from ._source import Model, Source, VectorChoices

with needs("LangChain", "langchain"):
    from langchain_core.embeddings import Embeddings


class MLXEngineEmbeddings(Embeddings):  # type: ignore[misc]
    """Vectors of texts and of queries.

    Args:
        model: ``"org/name"``, ``"org/name@revision"``, a folder, a configuration, or a loaded model. It is
            loaded when the first text comes.
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
        self, model: Model, *, engine: InferenceEngine | None = None, **choices: Unpack[VectorChoices]
    ) -> None:
        self._source = Source(model, engine, **choices)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text."""
        found: list[list[float]] = self._source.embed(texts, "document").tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        found: list[float] = self._source.embed([text], "query")[0].tolist()
        return found

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text; cancelling the task cancels the request."""
        found: list[list[float]] = (await self._source.aembed(texts, "document")).tolist()
        return found

    async def aembed_query(self, text: str) -> list[float]:
        """The vector of a query; cancelling the task cancels the request."""
        found: list[float] = (await self._source.aembed([text], "query"))[0].tolist()
        return found


__all__ = ["MLXEngineEmbeddings"]
