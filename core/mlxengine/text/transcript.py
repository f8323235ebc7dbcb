"""Keep a conversation in a JSON file, and read it again.

`Session.save` and `Session.restore` do so for a session. The file says its format and version; pictures and
sound are in it as paths, or as base64 where they were given as bytes.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from ..contract._convert import json_object, optional_text
from ..errors import ConfigurationError, InvalidParameterError, MLXEngineError
from ..readonly import thaw
from .grammar import Grammar
from .messages import (
    AudioPart,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    VideoPart,
)
from .params import GenerateParams, params_from

FORMAT = "mlxengine-transcript"
VERSION = 1
_PARTS: dict[str, type] = {
    "text": TextPart,
    "image": ImagePart,
    "audio": AudioPart,
    "video": VideoPart,
    "reasoning": ReasoningPart,
    "tool_call": ToolCallPart,
    "tool_result": ToolResultPart,
}
_NAMES = {kind: name for name, kind in _PARTS.items()}


@frozen(kw_only=True)
class Transcript:
    """The turns of a conversation, and what they were generated with.

    Args:
        model: the id of the model that answered.
        instructions: the system message, or ``None``.
        params: how the answers were generated.
        chat_template_kwargs: further variables of the model's chat template.
        messages: what was said, oldest first.
    """

    model: str
    instructions: str | None = field(default=None, validator=optional_text)
    params: GenerateParams = field(factory=GenerateParams)
    chat_template_kwargs: Mapping[str, Any] = field(factory=dict)
    messages: tuple[Message, ...] = ()


def write_transcript(path: Path, transcript: Transcript) -> None:
    """Write a transcript so that the file is either the old one or the new one, never half of it.

    Raises:
        InvalidParameterError: a message holds media that are neither a path nor bytes.
        OSError: the file cannot be written.
    """
    default = GenerateParams()
    params = {
        item.name: getattr(transcript.params, item.name)
        for item in attrs.fields(GenerateParams)
        if getattr(transcript.params, item.name) != getattr(default, item.name)
    }
    if transcript.params.grammar is not None:
        params["grammar"] = attrs.asdict(transcript.params.grammar)
    body = {
        "format": FORMAT,
        "version": VERSION,
        "model": transcript.model,
        "instructions": transcript.instructions,
        "params": params,
        "chat_template_kwargs": thaw(transcript.chat_template_kwargs),
        "messages": [
            {"role": message.role.value, "parts": [_encode(part) for part in message.parts]}
            for message in transcript.messages
        ],
    }
    text = json.dumps(body, ensure_ascii=False, indent=1) + "\n"
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_transcript(path: Path) -> Transcript:
    """Read what `write_transcript` wrote.

    Raises:
        ConfigurationError: the file cannot be read, or is not a transcript of a version that is known.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT or body["version"] != VERSION:
            raise ValueError(f"its format is {body['format']!r}, version {body['version']!r}")
        return Transcript(
            model=body["model"],
            instructions=body["instructions"],
            params=params_from({name: _parameter(value) for name, value in body["params"].items()}),
            chat_template_kwargs=json_object(body.get("chat_template_kwargs", {})),
            messages=tuple(
                Message(message["role"], tuple(_decode(part) for part in message["parts"]))
                for message in body["messages"]
            ),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        MLXEngineError,
    ) as error:
        raise ConfigurationError(
            f"{path} is not a saved conversation: {error}.", hint="Session.save writes one."
        ) from error


def _parameter(value: Any) -> Any:
    if isinstance(value, dict):
        return Grammar(**value)
    if isinstance(value, list):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value


def _encode(part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _NAMES[type(part)]}
    for item in attrs.fields(type(part)):
        value = getattr(part, item.name)
        if item.name == "source":
            value = _encode_media(value)
        elif item.name == "frames":
            value = [_encode_media(frame) for frame in value]
        elif item.name == "images":
            value = [_encode_media(image.source) for image in value]
        found[item.name] = thaw(value)
    return found


def _decode(data: Mapping[str, Any]) -> Any:
    kind = _PARTS[data["type"]]
    values = {name: value for name, value in data.items() if name != "type"}
    if "source" in values:
        values["source"] = _decode_media(values["source"])
    if "frames" in values:
        values["frames"] = tuple(_decode_media(frame) for frame in values["frames"])
    if "images" in values:
        values["images"] = tuple(ImagePart(_decode_media(image)) for image in values["images"])
    return kind(**values)


def _encode_media(source: Any) -> Any:
    if isinstance(source, str | Path):
        return {"path": str(source)}
    if isinstance(source, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(source).decode()}
    raise InvalidParameterError(
        f"A {type(source).__name__} cannot be saved in a transcript.",
        hint="Give pictures and sound as paths or encoded bytes.",
    )


def _decode_media(data: Mapping[str, str]) -> str | bytes:
    return base64.b64decode(data["base64"], validate=True) if "base64" in data else data["path"]


__all__ = ["Transcript", "read_transcript", "write_transcript"]
