"""Our `SentenceTransformer` beside sentence-transformers' own, argument by argument, on real weights."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from mlxengine import InferenceEngine
from mlxengine.errors import InvalidParameterError
from mlxengine.integrations.sentence_transformers import EncodeOptions, SentenceTransformer

TEXTS = [
    *("A cat sleeps.", "", "Shares fell sharply, the market lost a tenth.", "Zürich 🙂", "It rains. " * 9),
    *(f"Number {number} is about {subject}." for number in range(3) for subject in ("ants", "jazz")),
]


@pytest.fixture(scope="module", params=["minilm", "prompted"])
def both(request: pytest.FixtureRequest, engine: InferenceEngine) -> tuple[Any, Any]:
    folder = request.getfixturevalue(request.param)
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu")
    return SentenceTransformer(folder, engine=engine), theirs


CALLS: list[dict[str, Any]] = [
    {},
    {"prompt": "w1 w2: "},
    {"prompt_name": "query"},
    {"prompt_name": "query", "prompt": "w3 "},
    {"batch_size": 7},
    {"show_progress_bar": True},
    {"normalize_embeddings": True},
    {"truncate_dim": 10},
    {"truncate_dim": 10, "normalize_embeddings": True},
    {"truncate_dim": 100_000},
    {"precision": "int8"},
    {"precision": "uint8", "truncate_dim": 12},
    {"precision": "binary"},
    {"precision": "ubinary", "truncate_dim": 16},
    {"precision": "float32"},
    {"convert_to_tensor": True},
    {"convert_to_tensor": True, "precision": "int8"},
    {"convert_to_numpy": False},
    {"output_value": "token_embeddings"},
    {"device": "cpu"},
]


def same(ours: Any, theirs: Any) -> None:
    """The same kind of value with the same numbers."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
        return
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    a, b = (np.asarray(side).astype(np.float64) for side in (ours, theirs))
    if theirs.dtype in (np.int8, np.uint8, torch.int8, torch.uint8):
        # a number that lies on the border of a step may fall to either side
        assert (a != b).mean() < 0.05
        assert np.abs(a - b).max() <= 1
    elif a.size:
        assert np.abs(a - b).max() < 1e-5


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_each_argument_gives_what_theirs_gives(both: tuple[Any, Any], options: dict[str, Any]) -> None:
    ours, theirs = both
    same(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
@pytest.mark.parametrize("options", [{}, {"prompt": "w1 "}, {"prompt_name": "query"}], ids=str)
def test_queries_and_documents_get_the_prompts_that_theirs_get(
    both: tuple[Any, Any], method: str, options: dict[str, Any]
) -> None:
    ours, theirs = (getattr(side, method) for side in both)
    same(ours(TEXTS, **options), theirs(TEXTS, **options))


@pytest.mark.parametrize(
    "options", [{}, {"convert_to_tensor": True}, {"output_value": "token_embeddings"}], ids=str
)
@pytest.mark.parametrize("inputs", ["A cat sleeps.", ("a", "b"), np.array(["a", "b"]), [], [""]], ids=repr)
def test_each_kind_of_input_gives_what_theirs_gives(
    both: tuple[Any, Any], inputs: Any, options: dict[str, Any]
) -> None:
    ours, theirs = both
    if isinstance(inputs, list) and not inputs:
        assert len(ours.encode(inputs, **options)) == len(theirs.encode(inputs, **options)) == 0
        return
    same(ours.encode(inputs, **options), theirs.encode(inputs, **options))


def test_positions_and_the_older_name_mean_the_same(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    same(ours.encode(TEXTS, None, "w1 ", 8), theirs.encode(TEXTS, None, "w1 ", 8))
    same(ours.encode(sentences=TEXTS[:3]), theirs.encode(sentences=TEXTS[:3]))


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan", None])
@pytest.mark.parametrize("method", ["similarity", "similarity_pairwise"])
def test_similarities_are_theirs(both: tuple[Any, Any], name: str | None, method: str) -> None:
    ours, theirs = both
    own = ours.similarity_fn_name, theirs.similarity_fn_name
    assert own[0] == own[1]
    left, right = theirs.encode(TEXTS[:5]), theirs.encode(TEXTS[5:10])
    try:
        if name:
            ours.similarity_fn_name = theirs.similarity_fn_name = name
        expected = getattr(theirs, method)(left, right)
        found = getattr(ours, method)(left, right)
        assert isinstance(found, np.ndarray)
        assert np.abs(found - expected.numpy()).max() < 2e-5
        tensors = torch.from_numpy(left), torch.from_numpy(right)
        same(getattr(ours, method)(*tensors).round(decimals=3), expected.round(decimals=3))
        if method == "similarity":
            assert ours.similarity(left[0], right).shape == theirs.similarity(left[0], right).shape
    finally:
        ours.similarity_fn_name, theirs.similarity_fn_name = own


def test_what_it_says_of_itself_is_theirs(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.get_sentence_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.max_seq_length == ours.get_max_seq_length() == theirs.max_seq_length
    assert ours.prompts == theirs.prompts
    assert ours.default_prompt_name == theirs.default_prompt_name
    assert ours.truncate_dim == theirs.truncate_dim
    assert ours.device == str(theirs.device)
    with ours.truncate_embeddings(7), theirs.truncate_embeddings(7):
        assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 7
        same(ours.encode(TEXTS), theirs.encode(TEXTS))
    assert ours.truncate_dim == theirs.truncate_dim


def test_a_models_own_arguments_are_theirs(minilm: str, engine: InferenceEngine) -> None:
    options: dict[str, Any] = {
        "prompts": {"query": "q: ", "passage": "p: ", "title": "t: "},
        "default_prompt_name": "title",
        "truncate_dim": 100,
        "similarity_fn_name": "euclidean",
    }
    ours = SentenceTransformer(minilm, engine=engine, device="cpu", **options)
    theirs = sentence_transformers.SentenceTransformer(minilm, device="cpu", **options)
    assert ours.prompts == theirs.prompts
    for method in ("encode", "encode_query", "encode_document"):
        same(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))
    same(ours.encode(TEXTS, prompt_name="passage"), theirs.encode(TEXTS, prompt_name="passage"))
    left = theirs.encode(TEXTS[:4])
    assert np.abs(ours.similarity(left, left) - theirs.similarity(left, left).numpy()).max() < 1e-3


def test_the_order_of_arguments_is_theirs_and_what_is_not_taken_is_known() -> None:
    theirs = list(inspect.signature(sentence_transformers.SentenceTransformer.encode).parameters)
    ours = list(EncodeOptions.__annotations__)
    assert theirs[:2] == ["self", "inputs"]
    assert theirs[2 : 2 + len(ours)] == ours
    assert theirs[2 + len(ours) :] == ["pool", "chunk_size", "kwargs"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": {}}, "Unknown parameter 'pool'"),
        ({"device": "tpu"}, "the engine runs on 'cpu'"),
        ({"device": ["cpu", "cpu"]}, "cannot be had"),
        ({"output_value": None}, "output_value=None cannot be had"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"prompt_name": "none"}, "no prompt 'none'"),
        ({"batch_size": 0}, "batch_size"),
        ({"truncate_dim": 0}, "truncate_dim"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_name(both: tuple[Any, Any], options: Any, said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said.replace("[", r"\[")):
        both[0].encode(TEXTS[:2], **options)
