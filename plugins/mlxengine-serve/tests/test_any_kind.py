"""Requests and events of any class as JSON: built by their annotations, and nothing opened for a name."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from mlxengine import (
    Array,
    Event,
    Finished,
    GenerateParams,
    Grammar,
    ImagePart,
    ImageRequest,
    Message,
    Request,
    TextDelta,
    TextPart,
    TextRequest,
    ToolCallPart,
)
from mlxengine.errors import InvalidParameterError
from mlxengine_serve._refusals import Refusal
from mlxengine_serve._values import Builder
from serve_harness import Served, planned

PNG = {"base64": base64.b64encode(b"\x89PNG").decode()}


# -- values --------------------------------------------------------------------------------------------------


def build(kind: type, data: Any, folder: Path | None = None) -> Any:
    return Builder(lambda: folder or Path("/nowhere")).build(kind, data, "request")


def test_a_conversation_is_built_by_the_names_of_its_parts() -> None:
    data = {
        "messages": [
            {"role": "system", "parts": [{"type": "TextPart", "text": "Be brief."}]},
            {"role": "user", "parts": [
                {"type": "TextPart", "text": "See?"}, {"type": "ImagePart", "source": PNG}]},
            {"role": "assistant", "parts": [
                {"type": "ToolCallPart", "id": "c", "name": "clock", "arguments": {"zone": "utc"}}]},
        ],
        "params": {"max_tokens": 4, "temperature": 0, "stop": ["a"], "logit_bias": [[3, -1.5]],
                   "grammar": {"kind": "regex", "source": "a+"}},
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "chat_template_kwargs": {"style": "plain"},
    }  # fmt: skip
    assert build(TextRequest, data) == TextRequest(
        messages=[
            Message.system("Be brief."),
            Message.user([TextPart("See?"), ImagePart(b"\x89PNG")]),
            Message.assistant(ToolCallPart("c", "clock", {"zone": "utc"})),
        ],
        params=GenerateParams(
            max_tokens=4, temperature=0, stop=["a"], logit_bias={3: -1.5}, grammar=Grammar.regex("a+")
        ),
        tools=[{"type": "function", "function": {"name": "clock"}}],
        chat_template_kwargs={"style": "plain"},
    )


@pytest.mark.parametrize(
    "data",
    [
        {"prompt": "x", "init_image": "/etc/passwd"},
        {"prompt": "x", "init_image": ["/etc/passwd"]},
        {"prompt": "x", "lora": [["/etc", 1.0]]},
        {"prompt": "x", "lora": "/etc"},
        {"prompt": "x", "size": [1, 2, 3]},
        {"prompt": "x", "size": "64x64"},
        {"prompt": "x", "steps": 1.5},
        {"prompt": "x", "n": True},
        {"prompt": 5},
    ],
)
def test_no_text_stands_where_a_file_could(data: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        build(ImageRequest, data)


def test_a_picture_to_start_from_comes_as_bytes() -> None:
    found = build(ImageRequest, {"prompt": "x", "init_image": PNG, "size": [64, 32], "guidance": 3})
    assert (found.init_image, found.size, found.guidance) == (b"\x89PNG", (64, 32), 3)


@frozen(kw_only=True)
class Odd(Request):
    """What a stranger may think of."""

    where: Path | None = None
    recording_path: str | None = None
    data: bytes = b""
    either: int | str = 0
    pairs: tuple[tuple[str, float], ...] = ()


def test_paths_are_files_of_the_request_alone(tmp_path: Path) -> None:
    found = build(
        Odd, {"where": PNG, "recording_path": PNG, "data": PNG, "either": "a", "pairs": [["a", 1]]}, tmp_path
    )
    assert found.where.read_bytes() == b"\x89PNG"
    assert Path(found.recording_path).parent == tmp_path == found.where.parent
    assert (found.data, found.either, found.pairs) == (b"\x89PNG", "a", (("a", 1),))
    for name in ("where", "recording_path", "data"):
        with pytest.raises(Refusal):
            build(Odd, {name: "/etc/passwd"}, tmp_path)


def test_a_value_that_the_class_refuses_is_the_callers_fault() -> None:
    with pytest.raises(InvalidParameterError):
        build(TextRequest, {"prompt": "x", "params": {"temperature": -1}})


@frozen(kw_only=True)
class Strange(Event):
    """An event with all that one may hold."""

    values: Array
    numbers: tuple[float, ...] = ()
    content: bytes = b""


def test_events_are_plain_json_whatever_they_hold(served: Served) -> None:
    array = Array(data=b"\x00\x01", shape=(2,), dtype="uint8")
    served.plugin.plan = planned(  # type: ignore[union-attr]
        Strange(values=array, numbers=(1.5, float("-inf"), float("nan")), content=b"\xff"),
        TextDelta(text="x"), Finished(),
    )  # fmt: skip
    first = served.post("/v1/engine/TextRequest", {"request": {"prompt": "x"}}).json()["events"][0]
    assert first == {
        "type": "Strange", "index": 0, "mock": False, "numbers": [1.5, None, None],
        "values": {"data": "AAE=", "shape": [2], "dtype": "uint8"}, "content": {"base64": "/w=="},
    }  # fmt: skip


def test_a_class_that_was_just_made_is_not_taken_for_the_one_that_attrs_replaced() -> None:
    import gc

    import attrs
    from mlxengine_serve._values import subclasses

    gc.disable()  # as in the moment after a plugin was imported
    try:

        @attrs.frozen(kw_only=True)
        class JustMadeRequest(Request):
            text: str = ""

        found = [item for item in subclasses(Request) if item.__name__ == "JustMadeRequest"]
    finally:
        gc.enable()
    assert found == [JustMadeRequest]
