"""Embeddings: the vectors of the engine to the bit, in the form that was asked for."""

from __future__ import annotations

import base64
import threading
import time
import typing
from array import array
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import embed_checkpoints
import jsonschema
import numpy as np
import openai
import picture_checkpoints
import pytest
from mlxengine import ImagePart
from mlxengine_serve import ServerOptions, openai_embeddings
from openai.types import CreateEmbeddingResponse
from openai.types.embedding_create_params import EmbeddingCreateParams
from serve_harness import Served, serving

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def vectors() -> Iterator[Served]:
    with serving(ServerOptions(models=["mock/embed", "mock/llm"]), backend="mock") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def reference(served: Served, texts: list[Any], **options: Any) -> list[list[float]]:
    found = served.engine.sync.load_embeddings("mock/embed").embed(texts, **options).numpy()
    return [list(map(float, row)) for row in found]


@pytest.mark.parametrize(
    ("given", "texts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
def test_inputs_of_every_form_give_the_engines_own_vectors(
    vectors: Served, given: Any, texts: list[Any]
) -> None:
    answer = vectors.post(PATH, {"model": "mock/embed", "input": given})
    found = CreateEmbeddingResponse.model_validate_json(answer.content, strict=True)
    assert [item.embedding for item in found.data] == reference(vectors, texts)
    assert [item.index for item in found.data] == list(range(len(texts)))
    assert found.usage.prompt_tokens > 0


def test_base64_is_little_endian_float32(vectors: Served) -> None:
    answer = vectors.post(PATH, {"input": "a", "encoding_format": "base64", "dimensions": 3}).json()
    found = array("f", base64.b64decode(answer["data"][0]["embedding"]))
    assert [list(found)] == reference(vectors, ["a"], truncate_dim=3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "input"), ({"input": []}, "input"), ({"input": [1, "a"]}, "input"), ({"input": [[]]}, "input"),
     ({"input": "a", "dimensions": 0}, "dimensions"), ({"input": ["a", [1]]}, "input"),
     ({"input": "a", "prompt": "b", "prompt_name": "query"}, "prompt_name"),
     ({"input": [1], "prompt": "b"}, "prompt"), ({"input": [[1]], "prompt_name": "query"}, "prompt_name"),
     ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
     ({"input": "a", "model": "mock/llm"}, "model")],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(
    vectors: Served, fields: dict[str, Any], param: str
) -> None:
    answer = vectors.post(PATH, fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A small CLIP beside a model that does not see."""
    root = tmp_path_factory.mktemp("seeing")
    clip = picture_checkpoints.write("clip", root)
    models = [f"clip={clip}", f"bert={embed_checkpoints.write('bert-mean', root)}"]
    with serving(ServerOptions(models=models)) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200, seconds=60)
        yield made


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_pictures_stand_among_texts(seeing: Served) -> None:
    file = BytesIO()
    picture_checkpoints.pictures()[0].save(file, "PNG")
    given = ["a cat", {"image": data_url(file.getvalue())}, {"text": "dog"}]
    found = seeing.post(PATH, {"model": "clip", "input": given}).json()["data"]
    (folder,) = (card.path for card in seeing.engine.sync.models if card.architecture == "clip")
    assert folder is not None
    model = seeing.engine.sync.load_embeddings(folder)
    expected = model.embed(["a cat", ImagePart(file.getvalue()), "dog"]).numpy()
    assert [item["embedding"] for item in found] == [list(map(float, row)) for row in expected]
    alone = seeing.post(PATH, {"model": "clip", "input": given[1]}).json()["data"]
    assert np.allclose([item["embedding"] for item in alone], expected[1:2], atol=1e-6)
    schema = seeing.get("/openapi.json").json()["paths"][PATH]["post"]["requestBody"]["content"]
    for value in (given, given[1]):
        jsonschema.validate({"input": value}, schema["application/json"]["schema"])
    refused = [{"image": "/etc/hostname"}, {"image": "https://example.org/a.png"}, {"image": "data:,a"}, {}]
    refused += [{"image": data_url(b"none")}, {"image": data_url(b""), "text": "a"}, {"image": 5}]
    for item in refused:
        answer = seeing.post(PATH, {"model": "clip", "input": ["a", item]})
        assert answer.status_code == 400, item
        assert "hostname" not in answer.text
    answer = seeing.post(PATH, {"model": "bert", "input": [given[1]]})
    assert (answer.status_code, "not pictures" in answer.text) == (400, True)


def test_openais_client_embeds(vectors: Served) -> None:
    client = openai.OpenAI(base_url=f"{vectors.url}/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="mock/embed", input=["a", "b"])
    assert [item.embedding for item in found.data] == reference(vectors, ["a", "b"])


def test_the_table_has_every_field_of_openais_and_no_other() -> None:
    theirs = set(typing.get_type_hints(EmbeddingCreateParams))
    assert {item.name for item in openai_embeddings.TABLE.fields} == theirs
    assert not {item.name for item in openai_embeddings.TABLE.extra} & theirs


def test_many_vectors_are_written_without_holding_up_other_threads() -> None:
    from mlxengine_serve._refusals import encoded, encoded_apart

    small = {"object": "list", "data": [{"index": 0, "embedding": [0.5, -1e-9]}], "none": [], "n": [1, [2]]}
    assert encoded_apart(small) == encoded(small)
    many = {"data": [{"index": number, "embedding": [0.1234567] * 384} for number in range(3000)]}
    over, pauses = threading.Event(), [0.0]

    def tick() -> None:
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            pauses.append(time.perf_counter() - began)

    ticking = threading.Thread(target=tick)
    ticking.start()
    began = time.perf_counter()
    assert len(encoded_apart(many)) > 3000 * 384 * 9
    took = time.perf_counter() - began
    over.set()
    ticking.join()
    assert max(pauses) < took / 2
