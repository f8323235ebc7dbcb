"""Pictures and reranking: the engine's own pixels and scores, in forms that clients know."""

from __future__ import annotations

import base64
import json
import typing
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from mlxengine import Array, Finished, ImagePreview, ImageReady, ImageRequest, TokenUsage
from mlxengine_serve import ServerOptions, openai_images
from mlxengine_serve._png import png
from openai.types import ImageGenStreamEvent, ImagesResponse
from openai.types.image_generate_params import ImageGenerateParamsBase
from PIL import Image
from pydantic import TypeAdapter
from serve_harness import Scripted, Served, planned, serving, write_model

IMAGES, RERANK = "/v1/images/generations", "/v1/rerank"
EVENTS = TypeAdapter(ImageGenStreamEvent)


@pytest.fixture(scope="module")
def mock() -> Iterator[Served]:
    options = ServerOptions(models=["mock/diffusion", "mock/embed"], max_pixels=128 * 128, max_steps=8)
    with serving(options, backend="mock") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model(tmp_path_factory.mktemp("models") / "painter", kind="diffusion")
    with serving(ServerOptions(models=[f"painter={folder}"]), Scripted()) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def test_pictures_are_the_engines_pixels_as_png(mock: Served) -> None:
    body = {"model": "mock/diffusion", "prompt": "x", "n": 2, "size": "40x24", "seed": 3, "steps": 2}
    found = ImagesResponse.model_validate_json(mock.post(IMAGES, body).content, strict=True)
    made = mock.engine.sync.load_images("mock/diffusion").image("x", n=2, size=(40, 24), seed=3, steps=2)
    assert found.data is not None
    for item, picture in zip(found.data, made, strict=True):
        shown = Image.open(BytesIO(base64.b64decode(item.b64_json or "")))
        assert (shown.size, shown.mode) == ((40, 24), "RGB")
        assert shown.tobytes() == bytes(picture.pixels.data)
    assert (found.size, found.output_format) == ("40x24", "png")


def test_a_png_of_ours_is_read_by_others_pixel_by_pixel() -> None:
    import random

    data = random.Random(0).randbytes(7 * 5 * 3)
    shown = Image.open(BytesIO(png(Array(data=data, shape=(7, 5, 3), dtype="uint8"))))
    shown.verify()
    assert Image.open(BytesIO(png(Array(data=data, shape=(7, 5, 3), dtype="uint8")))).tobytes() == data
    with pytest.raises(ValueError, match="uint8"):
        png(Array(data=data, shape=(7, 15), dtype="uint8"))


def test_previews_come_while_it_is_painted_and_their_model_takes_every_event(painter: Served) -> None:
    pixels = Array(data=bytes(12), shape=(2, 2, 3), dtype="uint8")
    painter.plugin.plan = planned(  # type: ignore[union-attr]
        ImagePreview(step=3, pixels=pixels), ImagePreview(step=6, pixels=pixels),
        ImagePreview(step=9, pixels=pixels), ImageReady(pixels=pixels),
        Finished(usage=TokenUsage(prompt_tokens=2)),
    )  # fmt: skip
    frames = painter.frames(IMAGES, {"prompt": "x", "stream": True, "partial_images": 2, "steps": 9})
    for frame in frames:
        EVENTS.validate_json(json.dumps(frame), strict=True)
    assert [frame["type"].removeprefix("image_generation.") for frame in frames] == [
        "partial_image", "partial_image", "completed",
    ]  # fmt: skip
    assert [frame.get("partial_image_index") for frame in frames] == [0, 1, None]
    asked: Any = painter.plugin.last  # type: ignore[union-attr]
    assert isinstance(asked, ImageRequest)
    assert asked.preview_every == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"), ({"prompt": 3}, "prompt"), ({"prompt": "x", "size": "big"}, "size"),
        ({"prompt": "x", "size": "129x128"}, "size"), ({"prompt": "x", "steps": 9}, "steps"),
        ({"prompt": "x", "n": 17}, "n"), ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "steps": 0}, "steps"),
        ({"prompt": "x", "response_format": "url"}, "response_format"),
        ({"prompt": "x", "output_format": "webp"}, "output_format"),
        ({"prompt": "x", "background": "transparent"}, "background"),
        ({"prompt": "x", "partial_images": 1}, "partial_images"),
        ({"prompt": "x", "model": "mock/embed"}, "model"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_made_is_refused_with_its_field(
    mock: Served, fields: dict[str, Any], param: str
) -> None:
    answer = mock.post(IMAGES, fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_same_bounds_hold_where_any_request_may_be_asked(mock: Served) -> None:
    body = {"request": {"prompt": "x", "size": [4096, 4096]}}
    answer = mock.post("/v1/engine/ImageRequest", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


def test_openais_client_has_its_picture(mock: Served) -> None:
    client = openai.OpenAI(base_url=f"{mock.url}/v1", api_key="none", max_retries=0)
    made = client.images.generate(
        model="mock/diffusion", prompt="x", size="32x32", response_format="b64_json"
    )  # type: ignore[call-overload]
    assert Image.open(BytesIO(base64.b64decode(made.data[0].b64_json))).size == (32, 32)


def test_the_table_has_every_field_of_openais_and_no_other() -> None:
    theirs = set(typing.get_type_hints(ImageGenerateParamsBase)) | {"stream", "effort", "reasoning"}
    assert {item.name for item in openai_images.TABLE.fields} == theirs
    assert not {item.name for item in openai_images.TABLE.extra} & theirs


# -- reranking -----------------------------------------------------------------------------------------------

DOCUMENTS = ["a red boat", "nothing", "a red house by the sea"]


def test_documents_come_best_first_with_the_engines_scores(mock: Served) -> None:
    body = {"model": "mock/embed", "query": "red house", "documents": DOCUMENTS, "return_documents": True}
    found = mock.post(RERANK, body).json()
    assert [(item["index"], item["relevance_score"]) for item in found["results"]] == [
        (2, 1.0),
        (0, 0.5),
        (1, 0.0),
    ]
    assert found["results"][0]["document"] == {"text": DOCUMENTS[2]}
    objects = {
        **body,
        "documents": [{"text": item} for item in DOCUMENTS],
        "top_n": 1,
        "return_documents": False,
    }
    assert mock.post(RERANK, objects).json()["results"] == [{"index": 2, "relevance_score": 1.0}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "documents"), ({"query": "a"}, "documents"), ({"documents": ["a"]}, "query"),
     ({"query": "a", "documents": ["a", 1]}, "documents[1]"),
     ({"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
     ({"query": "a", "documents": ["a"], "rank_fields": ["x"]}, "rank_fields")],
)  # fmt: skip
def test_what_cannot_be_ranked_is_refused_with_its_field(
    mock: Served, fields: dict[str, Any], param: str
) -> None:
    answer = mock.post(RERANK, {"model": "mock/embed", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
