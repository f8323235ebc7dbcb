"""What dialects of text share: parameters, tools, media, formats: from a body's fields to a request's."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mlxengine import AudioPart, GenerateParams, Grammar, ImagePart, ToolChoice
from mlxengine.errors import InvalidParameterError
from mlxengine.text.params import params_from

from ._fields import Fields, honoured, whole
from ._refusals import Refusal

_SEEDS = 2**64
TIERS = {"flex": -1, "priority": 1}
SAMPLING = {
    name: name
    for name in (
        "max_tokens",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "n",
        "stop",
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop_token_ids",
        "ignore_eos",
        "adapter",
    )
}
"""Parameters that OpenAI's dialects, or servers beside them, call as we do."""
BEYOND = (
    honoured("top_k", "0 or -1: all tokens."),
    honoured("min_p"),
    honoured("repetition_penalty"),
    honoured("stop_token_ids"),
    honoured("ignore_eos"),
    honoured("adapter", "A loaded adapter's name."),
)
"""Those of them that OpenAI's own dialects lack."""


def parameters(body: Fields, names: Mapping[str, str], **given: Any) -> GenerateParams:
    """Parameters from fields; ``names`` maps the body's names to ours, ``given`` are ready values.

    Raises:
        Refusal: 400, a value is wrong; the body's own name of it is said.
    """
    found = {name: value for name in names if (value := whole(body.data.get(name))) is not None}
    if found.get("top_k") == -1:  # vLLM's word for all tokens
        found["top_k"] = 0
    values = {key: value for key, value in given.items() if value is not None}
    values |= {names[name]: value for name, value in found.items()}
    if len({names[name] for name in found}) == len(found):
        with suppress(InvalidParameterError, TypeError, ValueError):  # which one it is comes out below
            return params_from(values)
    for name, value in found.items():
        ours = names[name]
        try:
            params_from({ours: value})
        except (InvalidParameterError, TypeError, ValueError) as error:
            said = re.sub(rf"^{ours}\b", name, str(error))
            raise body.wrong(name, said if name in said else f"{name}: {said}") from None
    return params_from(values)


def seed_of(body: Fields) -> int | None:
    """Any whole number as a seed; theirs may be negative."""
    seed = body.integer("seed")
    return None if seed is None else seed % _SEEDS


def data_url(text: str, where: str) -> bytes:
    """What a ``data:`` URL holds. Nothing else is ever fetched or opened.

    Raises:
        Refusal: 400, it is another URL, a file's name, or not in base64.
    """
    head, comma, body = text.partition(",")
    if not head.lower().startswith("data:") or not comma:
        raise Refusal(
            400,
            "Only data: URLs are read; fetch the file yourself and send it as data:TYPE;base64,….",
            param=where,
            code="unsupported_url",
        )
    if not head.lower().endswith(";base64"):
        raise Refusal(400, "A data: URL must be in base64.", param=where, code="unsupported_url")
    return decoded(body, where)


def decoded(text: str, where: str) -> bytes:
    """Bytes of base64.

    Raises:
        Refusal: 400, it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{where} is not base64.", param=where, code="invalid_value") from None


def image(url: str, where: str) -> ImagePart:
    """A picture from a ``data:`` URL."""
    return ImagePart(data_url(url, where))


def sound(text: str, where: str) -> AudioPart:
    """Sound from base64."""
    return AudioPart(decoded(text, where))


def schema(body: Fields, name: str) -> Grammar:
    """The JSON schema in a field as a grammar.

    Raises:
        Refusal: 400, it is none.
    """
    if not body.has(name):
        return Grammar.json()
    try:
        return Grammar.json(body.data[name])
    except InvalidParameterError as error:
        raise body.wrong(name, str(error)) from None


def arguments(text: str) -> Mapping[str, Any]:
    """The arguments of a call in a history; one that could not be read stands there without any."""
    try:
        found = json.loads(text)
        # Calls that were broken by 1e999, or by half of a surrogate pair, come back too.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def choice(body: Fields, value: Any, named: str | None) -> ToolChoice | str:
    """``tool_choice`` as ours: a word, or the tool that was named.

    Raises:
        Refusal: 400, it is neither.
    """
    if named is not None:
        return ToolChoice(named)
    if value in ("auto", "none", "required"):
        return str(value)
    raise body.wrong("tool_choice", "tool_choice must be auto, none, required or name a function.")


__all__ = [
    "BEYOND",
    "SAMPLING",
    "TIERS",
    "arguments",
    "choice",
    "data_url",
    "decoded",
    "image",
    "parameters",
    "schema",
    "seed_of",
    "sound",
]
