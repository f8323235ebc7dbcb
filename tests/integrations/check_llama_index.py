"""LlamaIndex with our embeddings: its index, its ingestion with a cache, its settings, on real weights."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine.integrations.llama_index import MLXEngineEmbedding
from pydantic import ValidationError

TEXTS = ["A cat sleeps.", "Shares fell.", "It rains."]


def test_it_is_a_base_embedding() -> None:
    assert BaseEmbedding.__name__ in [base.__name__ for base in MLXEngineEmbedding.__mro__]
    assert resolve_embed_model(MLXEngineEmbedding("org/name")).model_name == "org/name"


def test_all_its_calls_give_the_models_vectors(
    engine: InferenceEngine, prompted: str, prompted_model: EmbeddingHandle
) -> None:
    ours = MLXEngineEmbedding(prompted, engine=engine)
    query = prompted_model.embed_query("w1 w2").numpy()
    documents = prompted_model.embed_document(["w1 w2", "w3", "w4"]).numpy()
    assert np.array_equal(ours.get_query_embedding("w1 w2"), query[0])
    assert np.abs(ours.get_text_embedding("w1 w2") - documents[0]).max() < 1e-6
    assert np.abs(ours.get_text_embedding_batch(["w1 w2", "w3", "w4"]) - documents).max() < 1e-6
    assert np.allclose(ours.get_agg_embedding_from_queries(["w1 w2", "w1 w2"]), query[0])

    async def again() -> None:
        assert np.array_equal(await ours.aget_query_embedding("w1 w2"), query[0])
        assert np.abs(await ours.aget_text_embedding("w1 w2") - documents[0]).max() < 1e-6
        found = await ours.aget_text_embedding_batch(["w1 w2", "w3", "w4"])
        assert np.abs(found - documents).max() < 1e-6

    asyncio.run(again())


def test_an_index_finds_what_is_like_the_query(minilm: str, engine: InferenceEngine) -> None:
    ours = MLXEngineEmbedding(minilm, engine=engine)
    Settings.embed_model = ours
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
    found = index.as_retriever(similarity_top_k=1).retrieve("the stock market")
    assert found[0].text == "Shares fell."
    assert 0.2 < found[0].score < 0.9


def test_ingestion_and_its_caches_keep_the_vectors(minilm: str, engine: InferenceEngine) -> None:
    ours = MLXEngineEmbedding(minilm, engine=engine, embeddings_cache=SimpleKVStore())
    pipeline = IngestionPipeline(transformations=[ours])
    nodes = [TextNode(text=text, id_=str(place)) for place, text in enumerate(TEXTS)]
    first = [node.embedding for node in pipeline.run(nodes=nodes)]
    assert first == [node.embedding for node in pipeline.run(nodes=nodes)]
    assert np.abs(first - engine.load_embeddings(minilm).embed(TEXTS).numpy()).max() < 1e-6
    assert len(ours.embeddings_cache.get_all(collection="embeddings")) == 3


def test_a_dict_brings_it_back(minilm: str) -> None:
    ours = MLXEngineEmbedding(minilm, truncate_dim=64, query_prompt="query: ")
    again = MLXEngineEmbedding.from_dict(ours.to_dict())
    assert again.to_dict() == ours.to_dict()
    assert again.to_dict()["class_name"] == "MLXEngineEmbedding"
    assert again.get_query_embedding("a") == ours.get_query_embedding("a")
    assert len(again.get_query_embedding("a")) == 64


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(InvalidParameterError, match="truncate_dim"):
        MLXEngineEmbedding("org/name", truncate_dim=-1)
    with pytest.raises(ValidationError, match="normalize"):
        MLXEngineEmbedding("org/name", normalize="perhaps")
    with pytest.raises(InvalidParameterError, match="engine must be"):
        MLXEngineEmbedding("org/name", engine="mine")  # type: ignore[arg-type]
