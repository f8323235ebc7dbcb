"""Token vectors and MaxSim, held to sentence-transformers' MultiVectorEncoder."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import embed_checkpoints
import numpy as np
import pytest
from mlxengine import AsyncInferenceEngine, EmbeddingHandle, EmbedRequest, InferenceEngine, MaxSimRequest
from mlxengine.contract.events import Array
from mlxengine.errors import InvalidParameterError, UnsupportedArchitectureError, UnsupportedInputError
from mlxengine_embed import _maxsim

Load = Callable[[str], EmbeddingHandle]
References = Mapping[str, Any]
WORDS = embed_checkpoints.word_texts()
QUERIES = WORDS[:9]
DOCUMENTS = [f"{text} , w1 ." for text in WORDS[:11]] + WORDS[11:]


@pytest.mark.feature("embed.embeddings")
@pytest.mark.parametrize("name", sorted(embed_checkpoints.LATE))
def test_token_vectors_and_their_similarity_are_the_references(
    random_model: Load, references: References, name: str
) -> None:
    model = random_model(name)
    assert (model.info["output"], model.info["similarity"], model.dimension) == ("tokens", "maxsim", 16)
    queries = model.embed(QUERIES, output="tokens", task="query")
    documents = model.embed(DOCUMENTS, output="tokens", task="document", batch_tokens=100)
    assert [len(item) for item in (*queries, *documents)] == references[f"{name}/lengths"].tolist()
    for found, kind in ((queries, "query"), (documents, "document")):
        joined = np.concatenate([item.numpy() for item in found])
        assert np.abs(joined - references[f"{name}/{kind}"]).max() < 1e-4
    assert np.abs(model.similarity(queries, documents).numpy() - references[name]).max() < 1e-4
    assert np.abs(model.similarity(QUERIES, DOCUMENTS).numpy() - references[name]).max() < 1e-4
    streamed = list(model.embed(iter(DOCUMENTS), output="tokens", task="document"))
    assert [item.shape for item in streamed] == [item.shape for item in documents]


def test_a_corpus_is_compared_a_block_at_a_time(
    random_model: Load, references: References, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("bert-colbert")
    queries = model.embed(QUERIES, output="tokens", task="query")
    documents = model.embed(DOCUMENTS, output="tokens", task="document")
    monkeypatch.setattr(_maxsim, "_CELLS", 9 * 16 * 40)
    events = list(model.run(MaxSimRequest(queries=queries.arrays, documents=documents.arrays)).events)
    assert len(events) > 5
    assert np.abs(model.similarity(queries, documents).numpy() - references["bert-colbert"]).max() < 1e-4


def test_what_has_no_tokens_is_like_nothing(random_model: Load) -> None:
    model = random_model("bert-colbert")
    (query,) = model.embed("w1 w2", output="tokens", task="query")
    none = Array(data=b"", shape=(0, 16), dtype="float32")
    minus = Array(data=(-query.numpy()[:1]).tobytes(), shape=(1, 16), dtype="float32")
    found = model.similarity([query, none], [none, query, minus]).numpy()
    assert found.shape == (2, 3)
    assert found[:, 0].tolist() == [0, 0]
    assert found[1].tolist() == [0, 0, 0]
    # A padded place must not win against what is less than nothing.
    expected = (query.numpy() @ minus.numpy().T).max(axis=1).sum()
    assert found[0, 2] == pytest.approx(expected, abs=1e-4)
    assert found[0, 1] == pytest.approx(16, abs=1e-4)
    with pytest.raises(InvalidParameterError, match="cannot be compared"):
        model.similarity([query], [Array(data=b"\0" * 12, shape=(1, 3), dtype="float32")])


def test_what_is_no_matrix_is_refused_where_one_is_compared(random_model: Load) -> None:
    late, sparse, dense = (random_model(name) for name in ("bert-colbert", "bert-splade", "bert-mean"))
    texts = ["w1 w2", "w3"]
    tokens = late.embed(texts, output="tokens", task="query")  # filled up: all of one length
    terms = sparse.embed(texts, output="sparse")
    for model, sides in (
        (late, (tokens, tokens)),
        (late, (texts, texts)),
        (sparse, (terms, terms)),
        (sparse, (terms[:1], terms)),
        (dense, (dense.embed(texts), terms)),
    ):
        with pytest.raises(InvalidParameterError, match="one vector a text"):
            model.similarity_pairwise(*sides)
    for sides in ((tokens, terms), (terms, dense.embed(texts))):
        with pytest.raises(InvalidParameterError, match="one vector a text"):
            late.similarity(*sides)
    for found in (tokens, terms):
        with pytest.raises(InvalidParameterError, match="one vector a text"):
            late.semantic_search(found, found)


def test_other_vectors_than_its_own_are_refused(random_model: Load) -> None:
    model = random_model("bert-colbert")
    for output in ("pooled", "sparse"):
        with pytest.raises(UnsupportedInputError, match="makes token vectors"):
            list(model.run(EmbedRequest(texts=("w1",), output=output)).events)
    with pytest.raises(InvalidParameterError, match="task='passage'"):
        model.embed("w1", output="tokens", task="passage")
    whole = model.embed("w1 w2", output="tokens", normalize=False, task="document")
    assert not np.allclose(np.linalg.norm(whole[0].numpy(), axis=1), 1, atol=1e-2)


def test_asyncio_compares_them_too(random_root: Path, references: References) -> None:
    async def compared() -> Any:
        async with AsyncInferenceEngine() as engine:
            model = await engine.load_embeddings(embed_checkpoints.write("bert-colbert", random_root))
            return (await model.similarity(QUERIES, DOCUMENTS)).numpy()

    assert np.abs(asyncio.run(compared()) - references["bert-colbert"]).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "file", "change", "match"),
    [
        (
            "bert-colbert",
            "config_sentence_transformers.json",
            {"query_expansion": {"length": 3}},
            "expansion",
        ),
        ("bert-colbert", "1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "module_input"),
        (
            "modernbert-multi-vector",
            "3_Normalize/config.json",
            {"module_input_name": "scores"},
            "module_input",
        ),
        (
            "modernbert-multi-vector",
            "2_MultiVectorMask/config.json",
            {"keep_only_token_ids": [5]},
            "keep_only",
        ),
    ],
)
def test_what_is_not_known_of_it_is_refused_by_name(
    engine: InferenceEngine,
    random_root: Path,
    tmp_path: Path,
    name: str,
    file: str,
    change: dict[str, Any],
    match: str,
) -> None:
    folder = Path(shutil.copytree(embed_checkpoints.write(name, random_root), tmp_path / "copy"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UnsupportedArchitectureError, match=match):
        engine.load_embeddings(folder)
