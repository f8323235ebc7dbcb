"""Handles of embedding models and rerankers on the mock back end: threads and asyncio get the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from mlxengine import (
    AsyncEmbeddingHandle,
    AsyncInferenceEngine,
    EmbeddingHandle,
    InferenceEngine,
    ModelConfiguration,
    errors,
)
from mlxengine.vectors import handle as handles

TEXTS = tuple(f"text number {number}" for number in range(11))
MODEL = ModelConfiguration(id="org/name", kind="embed")
T = TypeVar("T")


@pytest.fixture
def plain() -> Iterator[EmbeddingHandle]:
    with InferenceEngine(backend="mock", plugins=[]) as engine:
        yield engine.load_embeddings(MODEL)


def in_asyncio(use: Callable[[AsyncEmbeddingHandle], Any]) -> Any:
    """What a coroutine gives that is made for a handle for asyncio."""

    async def main() -> Any:
        async with AsyncInferenceEngine(backend="mock", plugins=[]) as engine:
            return await use(await engine.load_embeddings(MODEL))

    return asyncio.run(asyncio.wait_for(main(), 20))


def rows(arrays: Sequence[Any]) -> np.ndarray[Any, Any]:
    return np.stack([array.numpy() for array in arrays])


@pytest.mark.parametrize("method", ["embed", "embed_query", "embed_document"])
def test_both_give_the_same_vectors_and_tell_how_far_they_are(plain: EmbeddingHandle, method: str) -> None:
    seen: list[tuple[int, int | None]] = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    there = getattr(plain, method)(TEXTS, truncate_dim=4, progress=report)
    here = in_asyncio(lambda model: getattr(model, method)(TEXTS, truncate_dim=4, progress=report))
    assert there.shape == here.shape == (11, 4)
    assert (there.numpy() == here.numpy()).all()
    assert here.usage == there.usage
    assert seen == [(done, 11) for done in range(1, 12)] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_iterator_is_read_as_its_vectors_are_taken(
    plain: EmbeddingHandle, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    monkeypatch.setattr(handles, "ITERATOR_CHUNK", 4)
    read: list[str] = []
    seen: list[tuple[int, int | None]] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    async def later() -> AsyncIterator[str]:
        for text in texts():
            await asyncio.sleep(0)
            yield text

    async def embed(model: AsyncEmbeddingHandle) -> list[Any]:
        found = await model.embed(later() if asynchronous else texts(), progress=lambda *at: seen.append(at))
        assert read == []
        first = await anext(found)
        assert len(read) == 4
        return [first, *[row async for row in found]]

    given = rows(in_asyncio(embed))
    assert (given == rows([*plain.embed(iter(TEXTS))])).all()
    assert (given == plain.embed(TEXTS).numpy()).all()
    assert seen == [(done, None) for done in range(1, 12)]


def test_similarity_takes_texts_and_vectors_in_both(plain: EmbeddingHandle) -> None:
    async def compare(model: AsyncEmbeddingHandle) -> tuple[Any, Any]:
        return await model.similarity(TEXTS[:3]), await model.similarity(await model.embed("a"), ["a", "b"])

    square, line = in_asyncio(compare)
    assert (square.numpy() == plain.similarity(TEXTS[:3]).numpy()).all()
    unit = plain.embed(TEXTS[:3]).numpy().astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert np.abs(square.numpy() - unit @ unit.T).max() < 1e-6
    assert line.shape == (1, 2)
    assert line.numpy()[0, 0] == pytest.approx(1)


def test_both_rank_and_tell_how_far_they_are(plain: EmbeddingHandle) -> None:
    seen: list[tuple[int, int | None]] = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    documents = ["a dog", "a cat sleeps", "cat"]
    there = plain.rank("the cat sleeps", documents, top_k=2, progress=report)
    here = in_asyncio(lambda model: model.rank("the cat sleeps", documents, top_k=2, progress=report))
    assert here == there
    assert [item.document for item in here] == ["a cat sleeps", "cat"]
    assert seen == [(done, 3) for done in (1, 2, 3)] * 2


@pytest.mark.parametrize(
    ("method", "arguments", "options", "said"),
    [
        ("embed", [TEXTS], {"truncate": 3}, "'truncate'.*output, progress, normalize.*prompt_name"),
        ("embed_query", [TEXTS], {"prompt": "query: "}, "'prompt'.*progress, normalize"),
        ("embed", [3], {}, "found 3"),
        ("embed", [iter(TEXTS)], {"precision": "int8"}, "ranges"),
        ("rank", ["a", TEXTS], {"top_k": 0}, "top_k must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_alike(
    plain: EmbeddingHandle, method: str, arguments: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(errors.InvalidParameterError, match=said):
        getattr(plain, method)(*arguments, **options)
    with pytest.raises(errors.InvalidParameterError, match=said):
        in_asyncio(lambda model: getattr(model, method)(*arguments, **options))


def test_a_task_that_is_cancelled_while_it_embeds_ends_its_request() -> None:
    async def leave(model: AsyncEmbeddingHandle) -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(model.embed(["a"] * 100_000, progress=lambda *_at: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await model.embed("b")).shape == (1, 8)

    in_asyncio(leave)
