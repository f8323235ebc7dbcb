"""Sparse vectors of masked language models, held to sentence-transformers' SparseEncoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import embed_checkpoints
import numpy as np
import pytest
from mlxengine import EmbeddingHandle, EmbedRequest, InferenceEngine, SparseVector, VectorWorkload
from mlxengine.contract.events import Array
from mlxengine.errors import (
    IncompatibleWeightsError,
    InvalidParameterError,
    UnsupportedArchitectureError,
    UnsupportedInputError,
)
from mlxengine_embed import _splade
from safetensors.numpy import load_file, save_file

Load = Callable[[str], EmbeddingHandle]
References = Mapping[str, Any]
WORDS = embed_checkpoints.word_texts()


def dense(rows: Any) -> Any:
    """Sparse vectors with their zeros."""
    found = np.zeros((len(rows), rows[0].size), dtype=np.float32)
    for place, row in enumerate(rows):
        found[place, row.terms.numpy()] = row.weights.numpy()
    return found


@pytest.mark.feature("embed.embeddings")
@pytest.mark.parametrize("name", sorted(embed_checkpoints.SPARSE))
def test_sparse_vectors_are_the_references(random_model: Load, references: References, name: str) -> None:
    model = random_model(name)
    assert (model.info["output"], model.info["similarity"]) == ("sparse", "dot")
    found = model.embed(WORDS, output="sparse")
    assert np.allclose(dense(found), references[name], rtol=1e-5, atol=1e-4)
    assert [len(row) for row in found] == (references[name] > 0).sum(axis=1).tolist()
    assert 0 < (references[name] > 0).mean() < 0.9
    assert found.truncated == (11, 12, 13)


def test_queries_without_an_encoder_are_looked_up(random_model: Load, references: References) -> None:
    model = random_model("routed-splade")
    found = model.embed(WORDS, output="sparse", task="query")
    assert np.abs(dense(found) - references["routed-splade/query"]).max() < 1e-6
    documents = model.embed(WORDS, output="sparse", task="document")
    assert np.allclose(dense(documents), references["routed-splade"], rtol=1e-5, atol=1e-4)
    ids = [[4, 5, 6, 6, 5]]
    (told,), (row,) = model.embed(ids, output="sparse", task="query"), found[:1]
    assert set(told.terms.numpy().tolist()) <= {4, 5, 6}
    assert row.size == told.size
    expected = references["routed-splade/query"] @ references["routed-splade"].T
    assert np.allclose(model.similarity(found, documents).numpy(), expected, rtol=1e-4, atol=1e-3)
    assert model.embed([], output="sparse", task="query").vectors == ()


def test_routes_that_are_not_known_are_refused(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(embed_checkpoints.write("routed-splade", random_root), tmp_path / "copy"))
    whole = json.loads((folder / "router_config.json").read_text())
    for change in (
        {"structure": {"query": whole["structure"]["document"], "document": whole["structure"]["document"]}},
        {"parameters": {"route_mappings": {"a": "query"}}},
        {"structure": None},
    ):
        (folder / "router_config.json").write_text(json.dumps(whole | change))
        with pytest.raises(UnsupportedArchitectureError, match="routes its texts by"):
            engine.load_embeddings(folder)
    (folder / "router_config.json").write_text(json.dumps(whole))
    save_file(
        {"weight": np.ones(5, np.float32)}, str(folder / whole["structure"]["query"][0] / "model.safetensors")
    )
    with pytest.raises(IncompatibleWeightsError, match="one for each of its 204 terms"):
        engine.load_embeddings(folder)


def test_long_batches_are_pooled_a_piece_at_a_time(
    random_model: Load, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_splade, "CELLS", 3 * 14 * len(embed_checkpoints.VOCABULARY))
    for name in ("bert-splade", "bert-splade-sum"):
        found = random_model(name).embed(WORDS, output="sparse", batch_tokens=10**6)
        assert np.allclose(dense(found), references[name], rtol=1e-5, atol=1e-4)


def test_the_heaviest_terms_are_kept_and_named(random_model: Load, references: References) -> None:
    model = random_model("bert-splade")
    few = model.embed(WORDS, output="sparse", truncate_dim=5)
    assert np.abs(dense(few) - references["bert-splade/few"]).max() < 1e-4
    (row,) = model.embed(WORDS[4], output="sparse")
    places = [embed_checkpoints.VOCABULARY.index(word) for word, _ in row.top(3)]
    assert places == references["bert-splade/words"].tolist()
    assert [weight for _, weight in row.top()] == sorted(row.weights.numpy().tolist(), reverse=True)
    assert row.terms.numpy().tolist() == sorted(row.terms.numpy().tolist())
    streamed = list(model.embed(iter(WORDS), output="sparse"))
    assert [item.words for item in streamed] == [item.words for item in model.embed(WORDS, output="sparse")]


def test_similarity_is_the_references_of_texts_and_of_sparse_vectors(
    random_model: Load, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = random_model("bert-splade"), references["bert-splade/similarity"]
    rows = model.embed(WORDS, output="sparse")
    for sides in ((WORDS,), (rows,), (rows, WORDS), (list(rows), rows[:])):
        assert np.allclose(model.similarity(*sides).numpy(), expected, rtol=1e-5)
    assert np.allclose(model.similarity(rows[2], rows).numpy(), expected[2:3], rtol=1e-5)
    monkeypatch.setattr("mlxengine.vectors._sparse._CELLS", 3000)  # a few rows at a time
    assert np.allclose(model.similarity(rows).numpy(), expected, rtol=1e-5)
    empty = {kind: Array(data=b"", shape=(0,), dtype=kind) for kind in ("int32", "float32")}
    nothing = SparseVector(terms=empty["int32"], weights=empty["float32"], words=(), size=rows[0].size)
    with_nothing = model.similarity([rows[0], nothing], [nothing, rows[0]]).numpy()
    assert with_nothing[:, 0].tolist() == [0, 0]
    assert with_nothing[0, 1] == pytest.approx(expected[0, 0], rel=1e-5)
    weights, terms, offsets = (part.numpy() for part in rows.csr())
    assert offsets[-1] == len(weights) == len(terms)
    assert np.allclose(dense(rows)[5][terms[offsets[5] : offsets[6]]], weights[offsets[5] : offsets[6]])


def test_a_model_makes_the_vectors_that_it_was_trained_for(random_model: Load) -> None:
    sparse, plain = random_model("bert-splade"), random_model("bert-cls")
    for wrong in ("pooled", "tokens"):
        with pytest.raises(UnsupportedInputError, match=r"sparse vectors.*Use embed\(…, output=\"sparse\"\)"):
            list(sparse.run(EmbedRequest(texts=("w1",), output=wrong)))
    with pytest.raises(UnsupportedInputError, match="makes dense vectors"):
        plain.embed("w1", output="sparse")
    for options in ({"precision": "int8"}, {"normalize": True}):
        with pytest.raises(InvalidParameterError, match="Sparse vectors are float32"):
            sparse.embed(["w1", "w2"], output="sparse", **options)  # type: ignore[call-overload]


def test_the_logits_are_reckoned_into_the_memory(engine: InferenceEngine, random_root: Path) -> None:
    folder = embed_checkpoints.write("bert-splade", random_root)
    plain = embed_checkpoints.write("bert-cls", random_root)
    workload = VectorWorkload(batch=16, context_length=48, backend="cpu")
    found = [engine.explain(str(path)).claim.estimate(workload).workspace for path in (folder, plain)]  # type: ignore[union-attr]
    assert found[0] - found[1] == 4 * 3 * 256 * len(embed_checkpoints.VOCABULARY)


@pytest.mark.parametrize(
    ("file", "change", "error", "match"),
    [
        ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, UnsupportedArchitectureError, "'mean'"),
        ("1_SpladePooling/config.json", {"sharpness": 2}, UnsupportedArchitectureError, "sharpness"),
        ("config.json", {"model_type": "electra"}, UnsupportedArchitectureError, "sparse vectors with the"),
    ],
)
def test_what_is_not_known_of_it_is_refused_by_name(
    engine: InferenceEngine,
    random_root: Path,
    tmp_path: Path,
    file: str,
    change: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    folder = Path(shutil.copytree(embed_checkpoints.write("bert-splade", random_root), tmp_path / "copy"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(error, match=match):
        engine.load_embeddings(folder)


def test_a_repository_without_the_head_is_called_incomplete(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(embed_checkpoints.write("bert-splade", random_root), tmp_path / "copy"))
    stored = load_file(str(folder / "model.safetensors"))
    save_file({k: v for k, v in stored.items() if "cls." not in k}, str(folder / "model.safetensors"))
    with pytest.raises(IncompatibleWeightsError, match="no head of a masked language model"):
        engine.load_embeddings(folder)


def test_a_masked_language_model_called_splade_is_one(
    engine: InferenceEngine, random_root: Path, references: References, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny-splade"
    shutil.copytree(embed_checkpoints.write("distilbert-splade", random_root), folder)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    with engine.load_embeddings(folder) as model:
        found = dense(model.embed(WORDS[:10], output="sparse"))
        assert np.abs(found - references["distilbert-splade"][:10]).max() < 1e-4
