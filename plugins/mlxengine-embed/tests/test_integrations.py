"""What needs no framework of the adapters: how they find their model, what they refuse, and the facade."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_checkpoints import word_texts
from embed_texts import mixed_texts
from mlxengine import EmbeddingHandle, InferenceEngine
from mlxengine.errors import ConfigurationError, InvalidParameterError, UnsupportedInputError
from mlxengine.integrations._source import Source, default_engine
from mlxengine.integrations.sentence_transformers import SentenceTransformer

Load = Callable[[str], EmbeddingHandle]


@pytest.mark.parametrize(
    ("module", "imported", "extra"),
    [
        ("langchain", "langchain_core.embeddings", "langchain"),
        ("llama_index", "llama_index.core.base.embeddings.base", "llama-index"),
        ("chroma", "chromadb.api.types", "chroma"),
        ("lancedb", "lancedb.embeddings", "lancedb"),
        ("mteb", "mteb.models", "mteb"),
    ],
)
def test_a_framework_that_is_missing_is_said_with_what_to_install(
    module: str, imported: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, imported, None)
    monkeypatch.delitem(sys.modules, f"mlxengine.integrations.{module}", raising=False)
    with pytest.raises(ConfigurationError, match=rf'Install "mlxengine\[{extra}\]"') as caught:
        importlib.import_module(f"mlxengine.integrations.{module}")
    assert isinstance(caught.value.__cause__, ImportError)


def test_adapters_of_a_process_share_one_engine_and_load_a_model_once(minilm_folder: Path) -> None:
    first, second = Source(minilm_folder, None), Source(str(minilm_folder), None, truncate_dim=8)
    assert first.dimension == 384
    assert second.dimension == 8
    assert first.handle._live is second.handle._live
    assert first.handle._engine is default_engine()
    first.handle.evict()


def test_queries_and_documents_are_asked_for_as_the_model_or_the_caller_says(random_model: Load) -> None:
    model = random_model("bert-dense")
    own, given = Source(model, None), Source(model, None, query_prompt="w5 ", document_prompt="")
    assert np.array_equal(own.embed(["w1"], "query"), model.embed_query("w1"))
    assert np.array_equal(own.embed(["w1"], "document"), model.embed_document("w1"))
    assert np.array_equal(given.embed(["w1"], "query"), model.embed("w5 w1", prompt=""))
    assert np.array_equal(given.embed(["w1"], "document"), model.embed("w1", prompt=""))
    for source in (own, given):
        for purpose in ("query", "document"):
            found = asyncio.run(source.aembed(["w1", "w2"], purpose))
            assert np.array_equal(found, source.embed(["w1", "w2"], purpose))


def test_what_names_no_embedding_model_is_refused(random_model: Load) -> None:
    for wrong in (None, "", 5, ["org/name"]):
        with pytest.raises(InvalidParameterError, match="must name an embedding model"):
            Source(wrong, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError, match="engine must be an InferenceEngine"):
        Source("org/name", "engine")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedInputError, match="is a reranker"):
        _ = Source(random_model("bert-reranker"), None).dimension


@pytest.fixture
def facade(minilm_model: EmbeddingHandle) -> SentenceTransformer:
    return SentenceTransformer(minilm_model)


def test_the_facade_gives_the_references(facade: SentenceTransformer, references: Mapping[str, Any]) -> None:
    texts = mixed_texts()[:20]
    found = facade.encode(texts, show_progress_bar=True)
    assert isinstance(found, np.ndarray)
    assert found.flags.writeable
    assert np.abs(found - references["minilm"][:20]).max() < 1e-5
    assert np.abs(facade.encode(texts[19]) - references["minilm"][19]).max() < 1e-5
    shorter = facade.encode(texts, truncate_dim=128, normalize_embeddings=True)
    assert np.abs(shorter - references["minilm/truncated"]).max() < 1e-5
    assert np.array_equal(facade.encode(texts, truncate_dim=128), found[:, :128])  # not normalised again
    with facade.truncate_embeddings(128):
        assert facade.get_embedding_dimension() == 128
        assert np.array_equal(facade.encode(texts), found[:, :128])
    assert facade.encode([]).shape == (0,)
    assert np.abs(facade.similarity(found, found) - found @ found.T).max() < 1e-5


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_the_facades_precisions_are_the_references(
    facade: SentenceTransformer, references: Mapping[str, Any], precision: str
) -> None:
    found = facade.encode(mixed_texts()[25:57], precision=precision)
    expected = references[f"minilm/{precision}"]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found != expected).mean() < 0.002


def test_the_facades_prompts_are_sentence_transformers(
    random_model: Load, references: Mapping[str, Any]
) -> None:
    facade = SentenceTransformer(random_model("bert-dense"))
    words = word_texts()
    assert np.abs(facade.encode_query(words) - references["bert-dense/query"]).max() < 1e-4
    assert np.abs(facade.encode(words) - references["bert-dense"]).max() < 1e-4
    own = SentenceTransformer(facade.handle, prompts={"passage": "w3 "}, default_prompt_name="passage")
    assert np.abs(own.encode("w1") - facade.encode("w1", prompt="w3 ")).max() < 1e-6


def test_what_the_facade_cannot_give_is_refused_by_name(
    facade: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, said in (
        ({"pool": {}}, "Unknown parameter 'pool'"),
        ({"device": "tpu"}, "the engine runs on"),
        ({"output_value": None}, "output_value=None"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"precision": "int8"}, "in a single text"),
        ({"prompt_name": "none"}, "no prompt 'none'"),
        ({"batch_size": 0}, "batch_size"),
        ({"truncate_dim": 0}, "truncate_dim"),
    ):
        with pytest.raises(InvalidParameterError, match=said):
            facade.encode("a", **options)
    with pytest.raises(InvalidParameterError, match="prompt is given twice"):
        facade.encode("a", None, "b", prompt="c")
    for wrong in (None, {"a": "b"}, b"a"):
        with pytest.raises(InvalidParameterError, match="inputs must be a text"):
            facade.encode(wrong)
    monkeypatch.setitem(sys.modules, "torch", None)
    for options in (
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"output_value": "token_embeddings"},
    ):
        with pytest.raises(ConfigurationError, match="torch, which is not installed"):
            facade.encode("a", **options)  # type: ignore[arg-type]


def test_the_facade_loads_by_its_arguments(engine: InferenceEngine, minilm_folder: Path) -> None:
    facade = SentenceTransformer(str(minilm_folder), engine=engine, truncate_dim=10, similarity_fn_name="dot")
    assert facade.encode("a").shape == (10,)
    assert (facade.similarity_fn_name, facade.max_seq_length) == ("dot", 256)
    with pytest.raises(InvalidParameterError, match="similarity_fn_name"):
        SentenceTransformer(str(minilm_folder), engine=engine, similarity_fn_name="hamming")
    with pytest.raises(InvalidParameterError, match="no prompt 'x'"):
        SentenceTransformer(str(minilm_folder), engine=engine, default_prompt_name="x")
