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
from mlxengine.contract.events import Array
from mlxengine.vectors import handle, handle_async

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
    for module in (handle, handle_async):
        monkeypatch.setattr(module, "ITERATOR_CHUNK", 4)
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


class Series:
    """As pandas has it: an index of its own, so that ``[0]`` is no position."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = np.empty(len(values), dtype=object)
        self.values[:] = values
        self.dtype = self.values.dtype

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, label: Any) -> Any:
        raise KeyError(label)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.values, dtype=dtype, copy=copy)


@pytest.mark.parametrize(
    "side",
    [
        lambda texts, _: Series(texts),
        lambda texts, _: iter(texts),
        lambda texts, _: (text for text in texts),
        lambda texts, _: np.array(texts),
        lambda texts, _: dict.fromkeys(texts).keys(),
        lambda _, vectors: vectors.numpy().tolist(),
        lambda _, vectors: [*vectors],
        lambda _, vectors: Series([*vectors]),
        lambda _, vectors: iter(vectors),
    ],
)
def test_similarity_takes_any_sequence_of_texts_or_of_vectors(plain: EmbeddingHandle, side: Any) -> None:
    texts = TEXTS[:3]
    expected = plain.similarity(texts)
    assert np.abs(np.asarray(plain.similarity(side(texts, plain.embed(texts)))) - expected).max() < 1e-6
    assert plain.similarity(texts[:2], side(texts, plain.embed(texts))).shape == (2, 3)

    async def compare(model: AsyncEmbeddingHandle) -> Any:
        return await model.similarity(side(texts, await model.embed(texts)))

    assert np.abs(np.asarray(in_asyncio(compare)) - expected).max() < 1e-6


def test_similarity_of_nothing_is_an_empty_table(plain: EmbeddingHandle) -> None:
    assert plain.similarity([]).shape == (0, 0)
    assert plain.similarity([], TEXTS).shape == (0, 11)
    assert plain.similarity(TEXTS, iter(())).shape == (11, 0)


def test_similarity_tells_how_far_it_is_with_the_texts_of_both_sides(plain: EmbeddingHandle) -> None:
    seen: list[tuple[int, int | None]] = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    plain.similarity(TEXTS[:2], TEXTS[:3], progress=report)
    in_asyncio(lambda model: model.similarity(TEXTS[:2], TEXTS[:3], progress=report))
    assert seen == [(done, 5) for done in range(1, 6)] * 2
    del seen[:]
    plain.similarity(TEXTS[:4], progress=report)
    plain.similarity(plain.embed(TEXTS), progress=report)
    assert seen == [(done, 4) for done in range(1, 5)]


def test_vectors_are_an_array_to_whoever_reads_arrays(plain: EmbeddingHandle) -> None:
    vectors = plain.embed(TEXTS)
    whole = vectors.numpy()
    found = np.asarray(vectors)
    assert found.shape == (11, 8)
    assert np.shares_memory(found, whole)
    assert np.asarray(vectors, dtype=np.float64).dtype == np.float64
    assert np.array(vectors).flags.writeable
    with pytest.raises(ValueError, match="copy"):
        np.array(vectors, dtype=np.float64, copy=False)
    assert len(vectors) == 11
    assert [row.tolist() for row in vectors] == whole.tolist()
    assert vectors[3].tolist() == vectors[-8].tolist() == whole[3].tolist()
    assert vectors[2:5].tolist() == whole[2:5].tolist()
    assert vectors[:, :2].shape == (11, 2)
    assert np.stack([np.asarray(row) for row in plain.embed(iter(TEXTS))]).tolist() == whole.tolist()
    assert np.from_dlpack(vectors).tolist() == whole.tolist()
    assert not np.from_dlpack(vectors).flags.writeable
    with pytest.raises(IndexError):
        vectors[11]
    with pytest.raises(TypeError, match="no length"):
        len(Array(data=b"\0\0\0\0", shape=(), dtype="float32"))


def test_whole_numbers_of_numpy_and_arrays_of_token_ids_are_taken(plain: EmbeddingHandle) -> None:
    assert plain.embed(TEXTS, truncate_dim=np.int64(4)).shape == (11, 4)
    assert len(plain.rank("a", TEXTS, top_k=np.int64(2))) == 2
    assert plain.embed(np.array([[5, 6], [7, 8]])).numpy().tolist() == (
        plain.embed([[5, 6], [7, 8]]).numpy().tolist()
    )


def test_both_rank_and_tell_how_far_they_are(plain: EmbeddingHandle) -> None:
    seen: list[tuple[int, int | None]] = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    documents = ["a dog", "a cat sleeps", "cat"]
    there = plain.rank("the cat sleeps", documents, top_k=2, progress=report)
    here = in_asyncio(lambda model: model.rank("the cat sleeps", documents, top_k=2, progress=report))
    assert here == there
    assert [item.document for item in here] == ["a cat sleeps", "cat"]
    assert seen == [(done, 3) for done in (1, 2, 3)] * 2


def test_both_predict_and_tell_how_far_they_are(plain: EmbeddingHandle) -> None:
    seen: list[tuple[int, int | None]] = []
    report = lambda done, total: seen.append((done, total))  # noqa: E731
    pairs = [("the cat", "a cat"), ("the cat", "the cat sleeps"), ("a", "b")]
    there = plain.predict(pairs, progress=report)
    here = in_asyncio(lambda model: model.predict(iter(pairs), progress=report))
    assert here.numpy().tolist() == there.numpy().tolist() == [0.5, 1.0, 0.0]
    assert seen == [(done, 3) for done in (1, 2, 3)] * 2


@pytest.mark.parametrize(
    ("method", "arguments", "options", "said"),
    [
        ("embed", [TEXTS], {"truncate": 3}, "'truncate'.*output, progress, normalize.*prompt_name"),
        ("embed_query", [TEXTS], {"prompt": "query: "}, "'prompt'.*progress, normalize"),
        ("embed", [3], {}, "found 3"),
        ("embed", [iter(TEXTS)], {"precision": "int8"}, "ranges"),
        ("embed", [{"a text": 1}], {}, "a sequence of str, found {'a text'.*Give a list"),
        ("embed", [{"a", "b"}], {}, "a sequence of str, found"),
        ("embed", [b"a"], {}, "a sequence of str, found b'a'"),
        ("embed", [TEXTS], {"normalize": "yes"}, "normalize must be True, False or None"),
        ("embed", [TEXTS], {"truncate_dim": "3"}, "truncate_dim must be a positive whole number, found '3'"),
        ("embed", [TEXTS], {"truncate_dim": True}, "truncate_dim must be a positive whole number"),
        ("embed", [TEXTS], {"batch_tokens": 1.5}, "batch_tokens must be a positive whole number"),
        ("embed", [TEXTS], {"precision": None}, "precision must be a text"),
        ("embed", [TEXTS], {"output": 5}, "output must be a text"),
        ("embed", [TEXTS], {"prompt": 5}, "prompt must be a text"),
        ("embed", [TEXTS], {"prompt_name": ["query"]}, "prompt_name must be a text"),
        ("embed", [TEXTS], {"ranges": 5}, "ranges must be"),
        ("embed", [TEXTS], {"ranges": (1, 2)}, "ranges must be"),
        ("embed", [TEXTS], {"ranges": [[1.0]]}, "ranges must be"),
        ("embed", [TEXTS], {"progress": 3}, "progress must be a function"),
        ("similarity", [TEXTS], {"progress": 3}, "progress must be a function"),
        ("similarity", [{"a": 1}], {}, "a sequence of str, found"),
        ("similarity", [None], {}, "a sequence of str, found None"),
        ("similarity", [5], {}, "a sequence of str, found 5"),
        ("similarity", ["a", b"x"], {}, "a sequence of str, found"),
        ("similarity", [[1, "a"]], {}, "cannot be read as vectors"),
        ("similarity", [[[1, 2], [3]]], {}, "cannot be read as vectors"),
        ("rank", ["a", TEXTS], {"top_k": 0}, "top_k must be at least 1"),
        ("rank", ["a", TEXTS], {"top_k": "3"}, "top_k must be at least 1, found '3'"),
        ("rank", ["a", TEXTS], {"top_k": 1.5}, "top_k must be at least 1"),
        ("rank", ["a", {"b": 1}], {}, "a sequence of str, found"),
        (
            "predict",
            [["ab", ("a", "b")]],
            {},
            r"pairs\[0\] is not a pair.*'ab'.*for one pair too",
        ),
        ("predict", [("a", "b")], {}, r"pairs\[0\] is not a pair of texts"),
        ("predict", [[("a", "b")]], {"softmax": True}, "Unknown parameter 'softmax'"),
        ("predict", [[("a", "b")]], {"activation": "relu"}, "activation='relu' is not known"),
        ("rank", ["a", TEXTS], {"batch": 3}, "Unknown parameter 'batch'"),
        ("rank", ["a", TEXTS], {"progress": "x"}, "progress must be a function"),
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
