"""OpenAI's embeddings: texts or token ids in, and of models that see pictures, vectors out."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator
from typing import Any

from mlxengine import AsyncEmbeddingHandle, Embeddings, EmbedRequest, Event, Finished, TokenUsage
from mlxengine.errors import UnsupportedInputError

from ._answers import Asked, Dialect
from ._asking import image
from ._fields import Fields, Table, callers, honoured
from ._refusals import Refusal

TABLE = Table(
    "OpenAI embeddings",
    "/v1/embeddings",
    (
        honoured(
            "input",
            'A text, token ids, or several of either; to a model that sees also {"image": "data:…"} and '
            '{"text": "…"} among them, which is Jina\'s form.',
            "texts",
        ),
        honoured("model", "A served model's name or alias; left out, it is the first one."),
        honoured(
            "dimensions", "The first so many, of unit length again where the whole vector is.", "truncate_dim"
        ),
        honoured("encoding_format", "float, or base64 of little-endian float32."),
        callers("user", "Nothing is sent anywhere."),
    ),
    (
        honoured("prompt", "Put before every text."),
        honoured("prompt_name", "One of the model's own prompts: query, document."),
        honoured("normalize", "null does what the model's repository says."),
    ),
)


def read(body: dict[str, Any], request_id: str) -> Asked:  # noqa: ARG001 - the answer has no id
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise fields.wrong("encoding_format", "encoding_format is float or base64.")
    dimensions = fields.integer("dimensions")
    if dimensions is not None and dimensions < 1:
        raise fields.wrong("dimensions", "dimensions is a number from 1.")
    texts = _inputs(fields)
    if fields.has("prompt") and fields.has("prompt_name"):
        raise fields.wrong("prompt_name", "prompt and prompt_name do not go together.")
    for name in ("prompt", "prompt_name"):
        if fields.has(name) and any(isinstance(item, list) for item in texts):
            raise fields.wrong(name, f"{name} goes with texts: before token ids nothing can be put.")
    request = EmbedRequest(
        texts=texts,
        truncate_dim=dimensions,
        prompt=fields.text("prompt"),
        prompt_name=fields.text("prompt_name"),
        normalize=fields.flag("normalize"),
    )
    model = fields.text("model")
    return Asked(
        model=model,
        requests=(request,),
        handle=AsyncEmbeddingHandle,
        gives="embeddings",
        whole=lambda events: _whole(events, model or "", encoding),
        unknown=unknown,
        aside=True,
    )


def _inputs(fields: Fields) -> list[Any]:
    given = fields.data.get("input")
    if isinstance(given, str | dict):
        return [_input(given, "input")]
    items = fields.items("input")
    if not items:
        raise fields.wrong("input", "input is missing.", "missing_value")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return [items]
    found = [_input(item, f"input[{number}]") for number, item in enumerate(items)]
    if len({isinstance(item, list) for item in found}) > 1:
        raise fields.wrong("input", "input is texts or token ids: the two do not go together.")
    return found


def _input(item: Any, where: str) -> Any:
    """A text, token ids, or a picture."""
    if isinstance(item, dict):
        inner = Fields(item, where=where)
        if inner.has("image") == inner.has("text"):
            raise Refusal(400, f"{where} has one of image and text.", param=where, code="invalid_value")
        return image(inner.need("image"), inner.at("image")) if inner.has("image") else inner.need("text")
    ids = isinstance(item, list) and item and all(isinstance(token, int) for token in item)
    if not (isinstance(item, str) or ids):
        said = "input is a text, token ids, an object with a text or an image, or a list of these."
        raise Refusal(400, said, param="input", code="invalid_type")
    return item


def _whole(events: list[Event], model: str, encoding: str) -> dict[str, Any]:
    vectors = dict(pair for event in events if isinstance(event, Embeddings) for pair in vectors_of(event))
    last = events[-1]
    usage = TokenUsage.of(last.usage) if isinstance(last, Finished) else TokenUsage()
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vectors[index], encoding)}
        for index in sorted(vectors)
    ]
    tokens = usage.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def vectors_of(event: Embeddings) -> Iterator[tuple[int, bytes]]:
    """Each text's place and vector, as bytes of little-endian float32.

    Raises:
        UnsupportedInputError: the vectors are none of float32.
    """
    found = event.vectors
    if found is None or found.dtype != "float32":
        raise UnsupportedInputError("Vectors of float32 are served, one a text.")
    size = found.shape[1] * 4
    view = memoryview(found.data).cast("B")
    for row, index in enumerate(event.indices):
        yield index, bytes(view[row * size : (row + 1) * size])


def _written(vector: bytes, encoding: str) -> Any:
    return base64.b64encode(vector).decode() if encoding == "base64" else array("f", vector).tolist()


DIALECT = Dialect(TABLE, read)

__all__ = ["DIALECT", "TABLE", "read", "vectors_of"]
