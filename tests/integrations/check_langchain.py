"""LangChain's standard tests of an ``Embeddings``, on real weights, and what they leave out."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine.integrations.langchain import MLXEngineEmbeddings

from .conftest import MINILM


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return MLXEngineEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": MINILM}


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return MLXEngineEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": MINILM}


def test_queries_and_documents_get_the_models_prompts_or_those_that_were_given(
    engine: InferenceEngine, prompted: str, prompted_model: EmbeddingHandle
) -> None:
    own = MLXEngineEmbeddings(prompted, engine=engine)
    assert np.array_equal(own.embed_query("w1 w2"), prompted_model.embed_query("w1 w2")[0])
    assert np.array_equal(
        own.embed_documents(["w1 w2", "w3"]), prompted_model.embed_document(["w1 w2", "w3"])
    )
    assert not np.array_equal(own.embed_query("w1 w2"), own.embed_documents(["w1 w2"])[0])
    given = MLXEngineEmbeddings(prompted_model, query_prompt="w5 ", document_prompt="", truncate_dim=8)
    assert np.array_equal(
        given.embed_query("w1"), prompted_model.embed("w5 w1", prompt="", truncate_dim=8)[0]
    )
    assert np.array_equal(
        given.embed_documents(["w1"]), prompted_model.embed("w1", prompt="", truncate_dim=8)
    )

    async def both() -> tuple[list[float], list[list[float]]]:
        return await own.aembed_query("w1 w2"), await given.aembed_documents(["w1", "w2"])

    query, documents = asyncio.run(both())
    assert query == own.embed_query("w1 w2")
    assert documents == given.embed_documents(["w1", "w2"])


def test_a_vector_store_finds_what_is_like_the_query(model: EmbeddingHandle) -> None:
    store = InMemoryVectorStore(MLXEngineEmbeddings(model))
    store.add_documents([Document(text) for text in ("A cat sleeps.", "Shares fell.", "It rains.")])
    assert store.similarity_search("What does the kitten do?", k=1)[0].page_content == "A cat sleeps."
    assert store.similarity_search("the stock market", k=1)[0].page_content == "Shares fell."


def test_what_nobody_can_be_asked_is_refused_by_name(model: EmbeddingHandle) -> None:
    with pytest.raises(InvalidParameterError, match="Unknown parameter 'device'"):
        MLXEngineEmbeddings(model, device="cuda")  # type: ignore[call-arg]
    with pytest.raises(InvalidParameterError, match="truncate_dim"):
        MLXEngineEmbeddings(model, truncate_dim=0)
    with pytest.raises(InvalidParameterError, match="must name an embedding model"):
        MLXEngineEmbeddings(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match=r"texts\[1\]"):
        MLXEngineEmbeddings(model).embed_documents(["a", 5])  # type: ignore[list-item]


def test_no_texts_have_no_vectors(model: EmbeddingHandle) -> None:
    assert MLXEngineEmbeddings(model).embed_documents([]) == []


def test_cancelling_the_task_cancels_the_request(engine: InferenceEngine, model: EmbeddingHandle) -> None:
    async def given_up() -> None:
        texts = [f"Text number {number} of very many." for number in range(20_000)]
        task = asyncio.create_task(MLXEngineEmbeddings(model).aembed_documents(texts))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    model.embed("What comes next is not kept waiting.")
    ended = {name: count for item in engine.metrics() for name, count in item.requests.items()}
    assert any("ancel" in name for name in ended), ended
