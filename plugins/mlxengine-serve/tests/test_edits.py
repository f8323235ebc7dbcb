"""Edits of pictures: a form's files or data: URLs, masks by transparency, and what cannot be edited."""

from __future__ import annotations

import base64
import gzip
import json
import sys
import typing
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from mlxengine import Array, Finished, ImagePreview, ImageReady, ImageRequest, TokenUsage
from mlxengine_serve import ServerOptions, openai_edits
from openai.types import ImageEditStreamEvent, ImagesResponse
from openai.types.image_edit_params import ImageEditParamsBase
from PIL import Image
from pydantic import TypeAdapter
from serve_harness import Scripted, Served, planned, serving, write_model

EDITS = "/v1/images/edits"
EVENTS = TypeAdapter(ImageEditStreamEvent)
PIXELS = Array(data=bytes(12), shape=(2, 2, 3), dtype="uint8")
MADE = planned(ImageReady(pixels=PIXELS), Finished(usage=TokenUsage(prompt_tokens=2)))


def file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    found = BytesIO()
    picture.save(found, kind, **options)
    return found.getvalue()


PICTURE = file(Image.new("RGB", (40, 24), "red"))


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model(tmp_path_factory.mktemp("models") / "painter", kind="diffusion")
    options = ServerOptions(models=[f"painter={folder}"], max_pixels=64 * 64, max_steps=8, max_body=200_000)
    with serving(options, Scripted(plan=MADE)) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def send(server: Served, fields: dict[str, Any], files: Any = None) -> Any:
    """A form; its one picture unless other files are said."""
    return server.client.post(EDITS, data=fields, files=files or {"image": ("a.png", PICTURE, "image/png")})


def asked(server: Served) -> ImageRequest:
    found: Any = server.plugin.last  # type: ignore[union-attr]
    assert isinstance(found, ImageRequest)
    return found


def test_a_form_asks_the_engine_for_what_its_fields_say(painter: Served) -> None:
    fields = {"prompt": "a hat", "n": "1", "size": "16x8", "steps": "4", "seed": "-1", "strength": "0.5",
              "guidance": "2.5", "negative_prompt": "rain", "user": "me", "response_format": "b64_json",
              "odd": "x"}  # fmt: skip
    answer = send(painter, fields)
    found = ImagesResponse.model_validate_json(answer.content, strict=True)
    assert found.data is not None
    assert Image.open(BytesIO(base64.b64decode(found.data[0].b64_json or ""))).size == (2, 2)
    assert answer.headers["x-mlxengine-ignored"] == "odd"
    request = asked(painter)
    assert (request.prompt, request.size, request.steps, request.strength) == ("a hat", (16, 8), 4, 0.5)
    assert (request.guidance, request.negative, request.seed) == (2.5, "rain", 2**64 - 1)
    assert (request.init_image, request.mask) == (PICTURE, None)


def test_json_says_the_same_with_data_urls(painter: Served) -> None:
    mask = file(Image.new("L", (40, 24), 255))
    for body in (
        {"images": [{"image_url": url(PICTURE)}], "mask": {"image_url": url(mask)}},
        {"image": url(PICTURE), "mask": url(mask)},
        {"image": [url(PICTURE)], "mask": url(mask)},
    ):
        assert painter.post(EDITS, {"prompt": "x", **body}).status_code == 200
        assert (asked(painter).init_image, asked(painter).mask) == (PICTURE, mask)


def test_several_pictures_are_what_the_model_looks_at(painter: Served) -> None:
    other = file(Image.new("RGB", (8, 8), "blue"))
    files = [("image[]", ("a.png", PICTURE)), ("image[]", ("b.png", other))]
    assert send(painter, {"prompt": "both of them"}, files).status_code == 200
    assert (asked(painter).references, asked(painter).init_image) == ((PICTURE, other), None)
    body = {"prompt": "x", "images": [{"image_url": url(other)}, {"image_url": url(PICTURE)}]}
    assert painter.post(EDITS, body).status_code == 200
    assert asked(painter).references == (other, PICTURE)
    assert painter.post(EDITS, {**body, "strength": 0.5}).json()["error"]["param"] == "strength"


def test_what_is_transparent_in_a_mask_is_made_anew_whatever_its_colour(painter: Served) -> None:
    mask = Image.new("RGBA", (4, 2), (255, 255, 255, 255))  # white is kept
    for x in (0, 1):
        mask.putpixel((x, 0), (255, 255, 255, 0))
    files = {"image": ("a.png", PICTURE), "mask": ("m.png", file(mask))}
    assert send(painter, {"prompt": "x"}, files).status_code == 200
    shown = Image.open(BytesIO(asked(painter).mask))
    assert (shown.mode, shown.tobytes()) == ("L", bytes([255, 255, 0, 0, 0, 0, 0, 0]))


def test_a_mask_that_is_transparent_nowhere_is_taken_by_its_light(painter: Served) -> None:
    for mask in (file(Image.new("L", (4, 2), 9)), file(Image.new("RGBA", (4, 2), (0, 0, 0, 255)))):
        files = {"image": ("a.png", PICTURE), "mask": ("m.png", mask)}
        assert send(painter, {"prompt": "x"}, files).status_code == 200
        assert asked(painter).mask == mask


def test_previews_come_in_a_stream_that_their_model_takes(painter: Served) -> None:
    painter.plugin.plan = planned(  # type: ignore[union-attr]
        ImagePreview(step=2, pixels=PIXELS), ImageReady(pixels=PIXELS), Finished(usage=TokenUsage())
    )  # fmt: skip
    try:
        answer = send(painter, {"prompt": "x", "stream": "true", "partial_images": "1", "steps": "4"})
    finally:
        painter.plugin.plan = MADE  # type: ignore[union-attr]
    frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    for frame in frames:
        EVENTS.validate_json(json.dumps(frame), strict=True)
    assert [frame["type"] for frame in frames] == ["image_edit.partial_image", "image_edit.completed"]
    assert asked(painter).preview_every == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"), ({"prompt": "x", "n": "two"}, "n"), ({"prompt": "x", "n": "0"}, "n"),
        ({"prompt": "x", "n": "1.5"}, "n"), ({"prompt": "x", "n": "nan"}, "n"),
        ({"prompt": "x", "n": "1e400"}, "n"), ({"prompt": "x", "n": "17"}, "n"),
        ({"prompt": "x", "steps": "9"}, "steps"),
        ({"prompt": "x", "stream": "maybe"}, "stream"), ({"prompt": "x", "strength": "much"}, "strength"),
        ({"prompt": "x", "response_format": "url"}, "response_format"),
        ({"prompt": "x", "size": "65x64"}, "size"), ({"prompt": "x", "mask": "m.png"}, "mask"),
        ({"prompt": "x", "mask": "/etc/passwd"}, "mask"), ({"prompt": "x", "image": "a"}, "image[0]"),
        ({"prompt": "x", "input_fidelity": "high"}, "input_fidelity"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_served_is_refused_with_its_field(
    painter: Served, fields: dict[str, Any], param: str
) -> None:
    answer = send(painter, fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_forms_whole_numbers_may_be_written_as_jsons_may(painter: Served) -> None:
    assert send(painter, {"prompt": "x", "n": "2.0", "seed": "1e2"}).status_code == 200
    assert (asked(painter).n, asked(painter).seed) == (2, 100)


def test_pictures_that_are_none_or_too_large_or_too_many_for_a_mask_are_refused(painter: Served) -> None:
    def refused(files: Any, size: str | None = None) -> tuple[int, str]:
        answer = send(painter, {"prompt": "x", **({"size": size} if size else {})}, files)
        return answer.status_code, answer.json()["error"]["param"]

    two = [("image[]", ("a.png", PICTURE)), ("image[]", ("b.png", PICTURE))]
    assert refused([*two, ("mask", ("m.png", PICTURE))]) == (400, "mask")
    assert refused({"other": ("a.png", PICTURE)}) == (400, "image")
    assert refused({"image": ("a.png", b"no picture")}) == (400, "image")
    assert refused({"image": ("a.png", PICTURE), "mask": ("m.png", b"none")}) == (400, "mask")
    large = file(Image.new("RGB", (65, 64)))
    assert refused({"image": ("a.png", large)}) == (400, "size"), "its own size is the answer's"
    assert refused([("image[]", ("a.png", large)), two[0]]) == (400, "size"), "and that of the first one"
    assert send(painter, {"prompt": "x", "size": "64x64"}, {"image": ("a.png", large)}).status_code == 200


def test_where_nothing_reads_pictures_none_is_edited(
    painter: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    answer = send(painter, {"prompt": "x"})
    assert (answer.status_code, "Pillow" in answer.json()["error"]["message"]) == (400, True)


def test_the_size_of_a_picture_bounds_any_request_that_starts_from_it(painter: Served) -> None:
    large = base64.b64encode(file(Image.new("RGB", (65, 64)))).decode()
    body = {"request": {"prompt": "x", "init_image": {"base64": large}}}
    answer = painter.post("/v1/engine/ImageRequest", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


HEAD = b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", FORM), (b"--x\r\n", FORM), (HEAD + b"x", FORM), (HEAD + b"x\r\n--x", FORM),
        (b"--x\r\nbad header\r\n\r\nx\r\n--x--\r\n", FORM), (HEAD + b"\xff\r\n--x--\r\n", FORM),
        (b"--x\r\ncontent-disposition: form-data\r\n\r\nx\r\n--x--\r\n", FORM),
        (HEAD + b"x\r\n--x--\r\n", {"content-type": "multipart/form-data"}),
        (b"--x\r\n" + b"a: b\r\n" * 1000 + b"\r\nx\r\n--x--\r\n", FORM),
        ((HEAD + b"x\r\n") * 101 + b"--x--\r\n", FORM),
        (HEAD.replace(b"\r\n\r\n", b"\r\ncontent-transfer-encoding: odd\r\n\r\n") + b"x\r\n--x--\r\n", FORM),
        (b"{", {"content-type": "application/json"}), (HEAD, {"content-type": "text/plain"}),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_refused(painter: Served, body: bytes, headers: dict[str, str]) -> None:
    answer = painter.client.post(EDITS, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_compressed_form_is_refused_by_name(painter: Served) -> None:
    body = gzip.compress(HEAD + b"x\r\n--x--\r\n")
    answer = painter.client.post(EDITS, content=body, headers={**FORM, "content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_picture_that_is_none_is_said_to_be_none(painter: Served) -> None:
    answer = send(painter, {"prompt": "x"}, {"image": ("a.png", b"junk")})
    told = answer.json()["error"]["message"]
    assert told == "image cannot be read as a picture: it is no PNG, JPEG, WEBP, GIF, BMP or TIFF file."


def test_a_form_larger_than_a_body_may_be_is_refused(painter: Served) -> None:
    answer = send(painter, {"prompt": "x" * 200_000})
    assert answer.status_code == 413


def test_variations_are_refused_with_what_to_do_instead(painter: Served) -> None:
    answer = painter.client.post("/v1/images/variations", files={"image": ("a.png", PICTURE)})
    assert (answer.status_code, "/v1/images/edits" in answer.json()["error"]["message"]) == (400, True)


def test_openais_client_has_its_picture_edited(painter: Served) -> None:
    client = openai.OpenAI(base_url=f"{painter.url}/v1", api_key="none", max_retries=0)
    made = client.images.edit(model="painter", image=("a.png", PICTURE), prompt="a hat", n=1)
    assert made.data is not None
    assert made.data[0].b64_json
    [done] = client.images.edit(image=[("a.png", PICTURE)], prompt="a hat", mask=PICTURE, stream=True)
    assert done.type == "image_edit.completed"


def test_the_table_has_every_field_of_openais_and_no_other() -> None:
    theirs = set(typing.get_type_hints(ImageEditParamsBase)) | {"stream"}
    assert {item.name for item in openai_edits.TABLE.fields} == theirs
    assert not {item.name for item in openai_edits.TABLE.extra} & theirs
