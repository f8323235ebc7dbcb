"""Chroma with our embedding function: its own checks, its stored collections, on real weights."""

from __future__ import annotations

from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.api.types import validate_embedding_function
from chromadb.utils.embedding_functions import config_to_embedding_function, known_embedding_functions
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine.integrations.chroma import MLXEngineEmbeddingFunction

TEXTS = ["A cat sleeps.", "Shares fell.", "It rains."]


def test_chroma_takes_it_for_one_of_its_own(minilm: str) -> None:
    ours = MLXEngineEmbeddingFunction(minilm, truncate_dim=64)
    validate_embedding_function(ours)
    assert known_embedding_functions["mlxengine"] is MLXEngineEmbeddingFunction
    assert not ours.is_legacy()
    again = config_to_embedding_function({"name": ours.name(), "config": ours.get_config()})
    assert again.get_config() == {"model": minilm, "truncate_dim": 64}
    assert np.array_equal(again(["a"]), ours(["a"]))


def test_documents_and_queries_get_the_models_prompts(
    engine: InferenceEngine, prompted: str, prompted_model: EmbeddingHandle
) -> None:
    ours = MLXEngineEmbeddingFunction(prompted, engine=engine)
    found = ours(["w1 w2", "w3"])
    assert [row.dtype for row in found] == [np.float32] * 2
    assert np.array_equal(found, prompted_model.embed_document(["w1 w2", "w3"]))
    assert np.array_equal(ours.embed_query(["w1 w2"]), prompted_model.embed_query("w1 w2"))
    assert ours.default_space() == "ip"  # the model says "dot"


def test_a_stored_collection_finds_its_function_again(minilm: str, tmp_path: Path) -> None:
    ours = MLXEngineEmbeddingFunction(minilm, query_prompt="")
    first = chromadb.PersistentClient(str(tmp_path)).create_collection("texts", embedding_function=ours)
    first.add(ids=["0", "1", "2"], documents=TEXTS)
    assert first.configuration["hnsw"]["space"] == "cosine"
    chromadb.api.client.SharedSystemClient.clear_system_cache()
    again = chromadb.PersistentClient(str(tmp_path)).get_collection("texts")
    found = again.query(query_texts=["the stock market", "a kitten"], n_results=1)
    assert found["ids"] == [["1"], ["0"]]
    similar = 1 - found["distances"][0][0]
    assert similar == pytest.approx(
        float(ours.embed_query(["the stock market"])[0] @ ours([TEXTS[1]])[0]), abs=1e-4
    )
    assert again.configuration["embedding_function"].get_config() == {"model": minilm, "query_prompt": ""}


def test_what_would_spoil_a_collection_is_refused(minilm: str) -> None:
    ours = MLXEngineEmbeddingFunction(minilm)
    old = ours.get_config()
    ours.validate_config_update(old, {**old, "query_prompt": "query: ", "batch_tokens": 512})
    for change in ({"model": "org/other"}, {"truncate_dim": 8}, {"document_prompt": "d: "}):
        with pytest.raises(
            InvalidParameterError, match=f"{next(iter(change))} of a collection cannot change"
        ):
            ours.validate_config_update(old, {**old, **change})
    with pytest.raises(InvalidParameterError, match="Unknown parameter 'device'"):
        MLXEngineEmbeddingFunction.build_from_config({"model": minilm, "device": "mps"})
    with pytest.raises(InvalidParameterError, match="names no model"):
        MLXEngineEmbeddingFunction.build_from_config({})
    with pytest.raises(InvalidParameterError, match="model must be a str"):
        MLXEngineEmbeddingFunction(Path(minilm))  # type: ignore[arg-type]
