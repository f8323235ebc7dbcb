"""Searching among vectors gives what sentence-transformers' functions give, whatever the blocks are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import embed_checkpoints
import numpy as np
import pytest
from mlxengine import AsyncInferenceEngine, EmbeddingHandle, Hits, SearchRequest
from mlxengine.contract.events import Array
from mlxengine.errors import InvalidParameterError
from mlxengine_embed import _search

Load = Callable[[str], EmbeddingHandle]
QUERIES, CORPUS = embed_checkpoints.search_vectors()
WORDS = embed_checkpoints.word_texts()


def hits(corpus: Any, top_k: int, similarity: str, on_gpu: bool) -> tuple[Any, Any]:
    queries = Array(data=QUERIES.tobytes(), shape=QUERIES.shape, dtype="float32")
    request = SearchRequest(queries=queries, corpus=corpus, top_k=top_k, similarity=similarity)
    events = [event for event in _search.search(request, on_gpu) if isinstance(event, Hits)]
    return events[0].places.numpy(), events[0].scores.numpy()


def brute(similarity: str) -> Any:
    a, b = QUERIES.astype(np.float64), CORPUS.astype(np.float64)
    if similarity == "cosine":
        a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
    if similarity in ("cosine", "dot"):
        return a @ b.T
    order = 2 if similarity == "euclidean" else 1
    return -np.linalg.norm(a[:, None] - b[None], ord=order, axis=-1)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("cells", [60, 20 * 64 * 50, 1 << 22])
def test_every_block_size_finds_the_best_of_all(
    monkeypatch: pytest.MonkeyPatch, similarity: str, on_gpu: bool, cells: int
) -> None:
    monkeypatch.setattr(_search, "_CELLS", cells)
    expected = brute(similarity)
    order = np.argsort(-expected, axis=1)[:, :7]
    places, scores = hits(CORPUS, 7, similarity, on_gpu)
    assert (places == order).all()
    assert np.abs(scores - np.take_along_axis(expected, order, axis=1)).max() < 1e-4


def test_of_equal_vectors_the_earlier_come_first_and_all_may_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_search, "_CELLS", 200)
    same = np.repeat(CORPUS[:1], 30, axis=0)
    assert (hits(same, 4, "cosine", False)[0] == [0, 1, 2, 3]).all()
    places, _ = hits(CORPUS[:25], 99, "dot", False)
    assert places.shape == (20, 25)
    assert (np.sort(places, axis=1) == np.arange(25)).all()
    assert hits(CORPUS[:0], 3, "cosine", False)[0].shape == (20, 0)


def test_a_search_gives_what_sentence_transformers_gives(
    random_model: Load, references: Mapping[str, Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "corpus.npy", CORPUS)
    stored = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    model = random_model("bert-cls")
    seen: list[tuple[int, int | None]] = []
    for corpus in (CORPUS, stored, CORPUS.astype(np.float64), CORPUS.tolist()):
        found = model.semantic_search(QUERIES, corpus, top_k=7, progress=lambda *at: seen.append(at))
        assert (found.places.numpy() == references["search/places"]).all()
        assert np.abs(found.scores.numpy() - references["search/scores"]).max() < 1e-5
    assert seen == [(20, 20)] * 4
    assert len(found) == 20
    assert [place for place, _ in next(iter(found))] == references["search/places"][0].tolist()


def test_texts_are_searched_with_the_prompts_of_their_kind(random_model: Load) -> None:
    model = random_model("bert-dense")
    found = model.semantic_search(WORDS[:3], WORDS, top_k=2)
    table = model.similarity(model.embed_query(WORDS[:3]), model.embed_document(WORDS)).numpy()
    assert (found.places.numpy() == np.argsort(-table, axis=1)[:, :2]).all()
    assert model.semantic_search([], WORDS).places.shape == (0, 10)


def test_mining_finds_the_pairs_that_sentence_transformers_finds(
    random_model: Load, references: Mapping[str, Any]
) -> None:
    model = random_model("bert-cls")
    expected = references["mining"]
    pairs = model.paraphrase_mining(CORPUS[:90], top_k=5, max_pairs=60)
    assert [(pair.left, pair.right) for pair in pairs] == [tuple(row) for row in expected[:, 1:].astype(int)]
    assert np.abs(np.array([pair.score for pair in pairs]) - expected[:, 0]).max() < 1e-5
    doubled = model.paraphrase_mining([*WORDS[:5], WORDS[2], WORDS[2]], max_pairs=3)
    assert [(pair.left, pair.right) for pair in doubled] == [(2, 5), (2, 6), (5, 6)]
    assert model.paraphrase_mining([]) == ()


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_pairwise_similarity_is_sentence_transformers(
    random_model: Load, references: Mapping[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("bert-cls")
    monkeypatch.setattr(type(model), "_function", lambda _self: name)
    found = model.similarity_pairwise(QUERIES, CORPUS[:20])
    assert found.shape == (20,)
    assert (
        np.abs(np.asarray(found) - references[f"pairwise/{name[:3] if name == 'cosine' else name}"]).max()
        < 1e-4
    )
    assert np.abs(np.asarray(found) - np.diag(model.similarity(QUERIES, CORPUS[:20]))).max() < 1e-3


def test_asyncio_searches_alike(random_root: Path, random_model: Load) -> None:
    model = random_model("bert-cls")
    folder = embed_checkpoints.write("bert-cls", random_root)

    async def main() -> tuple[Any, Any, Any]:
        async with AsyncInferenceEngine() as engine:
            handle = await engine.load_embeddings(folder)
            return (
                await handle.semantic_search(WORDS[:3], WORDS, top_k=4),
                await handle.paraphrase_mining(WORDS, top_k=2),
                await handle.similarity_pairwise(WORDS[:3], WORDS[3:6]),
            )

    found, pairs, line = asyncio.run(main())
    assert found.places == model.semantic_search(WORDS[:3], WORDS, top_k=4).places
    assert [(p.left, p.right) for p in pairs] == [
        (p.left, p.right) for p in model.paraphrase_mining(WORDS, top_k=2)
    ]
    assert np.abs(np.asarray(line) - model.similarity_pairwise(WORDS[:3], WORDS[3:6])).max() < 1e-6


def test_a_bad_argument_of_a_search_is_a_typed_error(random_model: Load) -> None:
    model = random_model("bert-cls")
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("semantic_search", (QUERIES, CORPUS[:, :5]), {}),
        ("semantic_search", (QUERIES, CORPUS), {"top_k": 0}),
        ("semantic_search", (QUERIES, CORPUS), {"top_k": None}),
        ("semantic_search", (QUERIES, CORPUS), {"progress": 1}),
        ("semantic_search", (QUERIES, {"a": 1}), {}),
        ("semantic_search", (None, CORPUS), {}),
        ("paraphrase_mining", (CORPUS,), {"max_pairs": 0}),
        ("paraphrase_mining", (CORPUS,), {"top_k": "3"}),
        ("paraphrase_mining", (5,), {}),
        ("similarity_pairwise", (QUERIES, CORPUS), {}),
        ("similarity_pairwise", (QUERIES, None), {}),
    ]
    for method, arguments, options in wrong:
        with pytest.raises(InvalidParameterError):
            getattr(model, method)(*arguments, **options)
