"""The model behind an adapter: loaded when it is first needed, asked for queries or for documents."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..contract._convert import only
from ..contract.configuration import ModelConfiguration
from ..engine import InferenceEngine
from ..errors import InvalidParameterError, UnsupportedInputError
from ..vectors.handle import EmbeddingHandle
from ..vectors.handle_async import AsyncEmbeddingHandle
from ..vectors.requests import EmbedRequest

Model = str | Path | ModelConfiguration | EmbeddingHandle


class VectorChoices(TypedDict, total=False):
    """What an adapter's vectors are like; what is left out, or ``None``, is as the model has it.

    ``query_prompt`` and ``document_prompt`` are put before queries and documents, as they are (``""``:
    nothing); ``normalize``, ``truncate_dim``, ``batch_tokens`` are those of `EmbeddingHandle.embed`.
    """

    query_prompt: str | None
    document_prompt: str | None
    normalize: bool | None
    truncate_dim: int | None
    batch_tokens: int | None


_made: list[InferenceEngine] = []
_making = threading.Lock()


def default_engine() -> InferenceEngine:
    """The engine of adapters that were given none: made when one needs it, closed when the process ends.

    Frameworks make an adapter anew from what they have stored, some of them for each call, and drop it
    without a word: the models that they share have to outlive them.
    """
    with _making:
        if not _made:
            _made.append(InferenceEngine())
        return _made[0]


class Source:
    """A model and how an adapter asks it.

    Args:
        model: ``"org/name"``, ``"org/name@revision"``, a folder, a configuration, or a loaded model.
        engine: what loads it; ``None`` is `default_engine`.
        choices: see `VectorChoices`.

    Raises:
        InvalidParameterError: an option is unknown or out of range, or ``model`` names none.
    """

    def __init__(
        self, model: Model, engine: InferenceEngine | None, **choices: Unpack[VectorChoices]
    ) -> None:
        only(choices, VectorChoices, "model", "engine")
        if not isinstance(model, str | Path | ModelConfiguration | EmbeddingHandle) or not model:
            raise InvalidParameterError(
                f"model must name an embedding model, found {model!r}.",
                hint='Give "org/name", a folder, or what engine.load_embeddings gave.',
            )
        if engine is not None and not isinstance(engine, InferenceEngine):
            raise InvalidParameterError(f"engine must be an InferenceEngine, found {engine!r}.")
        self._model, self._engine = model, engine
        self._prompts = {"query": choices.get("query_prompt"), "document": choices.get("document_prompt")}
        self._options: dict[str, Any] = {
            name: choices.get(name) for name in ("normalize", "truncate_dim", "batch_tokens")
        }
        for prompt in self._prompts.values():
            EmbedRequest(texts=(), prompt=prompt, **self._options)  # says now what is wrong with them
        self._loading = threading.Lock()
        self._handle = model if isinstance(model, EmbeddingHandle) else None

    @property
    def name(self) -> str:
        """The model's id."""
        model = self._model
        return model.id if isinstance(model, ModelConfiguration | EmbeddingHandle) else str(model)

    @property
    def handle(self) -> EmbeddingHandle:
        """The model, loaded."""
        with self._loading:
            if self._handle is None:
                assert not isinstance(self._model, EmbeddingHandle)
                self._handle = (self._engine or default_engine()).load_embeddings(self._model)
            return self._handle

    @property
    def dimension(self) -> int:
        """Length of a vector.

        Raises:
            UnsupportedInputError: the model is a reranker.
        """
        size = self.handle.dimension
        if size is None:
            raise UnsupportedInputError(
                f"{self.name} is a reranker: it makes scores, not vectors.", hint="Name an embedding model."
            )
        return min(size, self._options["truncate_dim"] or size)

    def embed(self, texts: Sequence[str], purpose: str) -> Any:
        """Vectors of texts, a float32 numpy array (texts, dimension); the purpose is one of ``_prompts``."""
        handle, prompt = self.handle, self._prompts[purpose]
        if prompt is not None:
            return handle.embed(list(texts), prompt=prompt, **self._options).numpy()
        with_own = handle.embed_query if purpose == "query" else handle.embed_document
        return with_own(list(texts), **self._options).numpy()

    async def aembed(self, texts: Sequence[str], purpose: str) -> Any:
        """`embed` for asyncio; cancelling the task cancels the request."""
        loaded, prompt = await asyncio.to_thread(lambda: self.handle), self._prompts[purpose]
        handle = AsyncEmbeddingHandle(loaded._engine, loaded._live)
        if prompt is not None:
            return (await handle.embed(list(texts), prompt=prompt, **self._options)).numpy()
        with_own = handle.embed_query if purpose == "query" else handle.embed_document
        return (await with_own(list(texts), **self._options)).numpy()


__all__ = ["Model", "Source", "VectorChoices", "default_engine"]
