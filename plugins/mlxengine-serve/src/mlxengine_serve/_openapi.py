"""``/openapi.json``: what the server takes, as OpenAPI 3.1, from the tables that requests are checked by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from attrs import define
from mlxengine import Route, __version__

from ._answers import Dialect
from ._fields import Fate, Field, Table
from ._http import Receive, Scope, Send, send_bytes
from .app import DIALECTS, dialect

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_TEXTS = {"type": "array", "items": _TEXT}
_OBJECTS = {"type": "array", "items": _OBJECT}
_TOKENS = {"type": "array", "items": _WHOLE}
_MIXED = {"type": "array", "items": {"anyOf": [_TEXT, _OBJECT]}}
_SEVERAL = {"anyOf": [_TEXT, _TEXTS, _TOKENS, {"type": "array", "items": _TOKENS}]}


def _or(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _each(schema: Schema, names: str) -> dict[str, Schema]:
    return dict.fromkeys(names.split(), schema)


def _just(value: Any) -> Schema:
    """One value alone; programs that make clients know of no constant that is a list."""
    if not isinstance(value, list):
        return {"const": value}
    items: Schema = {"enum": value} if value else {}
    return {"type": "array", "items": items, "minItems": len(value), "maxItems": len(value)}


_TYPES = {
    **_each(_TEXT, "model adapter prompt query instructions negative_prompt size scheduler prompt_name"),
    **_each(_TEXT, "encoding_format reasoning_effort service_tier"),
    **_each(_WHOLE, "max_tokens max_completion_tokens max_output_tokens n seed steps partial_images top_n"),
    **_each(_WHOLE, "dimensions thinking_budget top_k top_logprobs"),
    **_each(_NUMBER, "temperature top_p min_p repetition_penalty frequency_penalty presence_penalty"),
    **_each(_NUMBER, "guidance strength"),
    **_each(_FLAG, "stream logprobs ignore_eos parallel_tool_calls add_generation_prompt normalize"),
    **_each(_FLAG, "continue_final_message return_documents"),
    **_each(_OBJECT, "logit_bias response_format stream_options reasoning text thinking output_config"),
    **_each(_OBJECT, "chat_template_kwargs metadata"),
    "messages": {**_OBJECTS, "minItems": 1},
    "tools": _OBJECTS,
    **_each(_TEXTS, "stop_sequences include"),
    **_each(_or(_TEXT, _OBJECTS), "input system"),
    **_each(_or(_TEXT, _OBJECT), "tool_choice mask"),
    **_each(_or(_TEXT, {"type": "array", "items": {}}), "image images"),
    "documents": {"type": "array", "items": _or(_TEXT, _OBJECT), "minItems": 1},
    "stop": _or(_TEXT, _TEXTS),
    "stop_token_ids": _TOKENS,
}
"""What a field's values are, by its name."""
_TYPES_OF = {
    ("/v1/completions", "prompt"): _SEVERAL,
    ("/v1/completions", "logprobs"): _WHOLE,
    ("/v1/embeddings", "input"): _or(*_SEVERAL["anyOf"], _OBJECT, _MIXED),
    ("/v1/messages", "tool_choice"): _OBJECT,
    ("/v1/messages/count_tokens", "tool_choice"): _OBJECT,
}
"""Where one path's field differs from its namesakes."""
_NEEDED = {
    "/v1/chat/completions": ["messages"],
    "/v1/completions": ["prompt"],
    "/v1/responses": ["input"],
    "/v1/embeddings": ["input"],
    "/v1/messages": ["messages", "max_tokens"],
    "/v1/messages/count_tokens": ["messages"],
    "/v1/images/generations": ["prompt"],
    "/v1/images/edits": ["prompt"],
    "/v1/rerank": ["query", "documents"],
}
_FORM = "multipart/form-data"
_JSON = "application/json"
_PART = {"required": True, "schema": {"type": "string", "minLength": 1}}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": _OBJECT}}


def field_schema(path: str, field: Field) -> Schema:
    """A field's values: those that it may have, with what becomes of them."""
    if field.fate is Fate.CALLERS:
        found: Schema = {}
    elif field.fate is Fate.REFUSED:
        found = _or({"type": "null"}, *map(_just, field.neutral))
    else:
        found = _TYPES_OF.get((path, field.name)) or _TYPES[field.name]
        if field.name not in _NEEDED[path]:
            found = _or(found, {"type": "null"})
    said = f"{field.fate}. {field.note}".strip()
    return {**found, "description": said}


def body_schema(table: Table) -> Schema:
    """A body: its fields, those that have to be there, and any others."""
    fields = (*table.fields, *table.extra)
    return {
        "type": "object",
        "title": table.title,
        "properties": {item.name: field_schema(table.path, item) for item in fields},
        "required": _NEEDED[table.path],
    }


def _operation(summary: str, *answers: str, body: Schema | None = None, form: bool = False) -> Schema:
    found: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {kind: {} for kind in answers}},
            "default": {"description": "What went wrong.", "content": {_JSON: {"schema": _ERROR}}},
        },
    }
    if body is not None:
        kinds = (_JSON, _FORM) if form else (_JSON,)
        found["requestBody"] = {"required": True, "content": {kind: {"schema": body} for kind in kinds}}
    return found


def _posted(found: Dialect) -> Schema:
    table = found.table
    streamed = any(item.name == "stream" for item in table.fields)
    answers = (_JSON, "text/event-stream") if streamed else (_JSON,)
    return _operation(table.title, *answers, body=body_schema(table), form=found.form is not None)


def _own(manage: bool) -> dict[str, Schema]:
    engine = {
        "type": "object",
        "properties": {"model": _TEXT, "request": _OBJECT, "stream": _or(_FLAG, {"type": "null"})},
        "required": ["request"],
    }
    model = {"type": "object", "properties": {"model": _TEXT}, "required": ["model"]}
    any_kind = _operation("Any request of any kind", _JSON, "text/event-stream", body=engine)
    found = {
        "/health": {"get": _operation("The process answers", _JSON)},
        "/ready": {"get": _operation("Requests are served", _JSON)},
        "/metrics": {"get": _operation("The engine's figures and HTTP's", "application/openmetrics-text")},
        "/v1/models": {"get": _operation("The models that are served", _JSON)},
        "/v1/models/{name}": {"get": _operation("One of them", _JSON)},
        "/v1/engine/{type}": {"post": any_kind},
    }
    for verb in ("load", "unload") if manage else ():
        summary = f"Let a model be {verb}ed"
        found[f"/v1/models/{verb}"] = {"post": _operation(summary, _JSON, "text/event-stream", body=model)}
    return found


def document(*, manage: bool, keys: bool, plugins: Iterable[Route] = ()) -> Schema:
    """The whole document.

    Args:
        manage: clients may load and unload models.
        keys: a request needs one.
        plugins: the routes of plugins, of which no more is known than their paths.
    """
    paths: dict[str, Schema] = {path: {"post": _posted(dialect(path))} for path in DIALECTS} | _own(manage)
    for route in plugins:
        methods = {method.lower(): _operation(route.path, "*/*") for method in route.methods}
        paths.setdefault(re.sub(r"{(\w+):\w+}", r"{\1}", route.path), methods)
    for path, operations in paths.items():
        if names := re.findall(r"{(\w+)}", path):
            operations |= {"parameters": [{"name": name, "in": "path", **_PART} for name in names]}
    found: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "MLXEngine", "version": __version__},
        "paths": paths,
    }
    if keys:
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        found |= {"components": {"securitySchemes": schemes}, "security": [{name: []} for name in schemes]}
    return found


@define(eq=False)
class OpenAPI:
    """``GET /openapi.json``; what it says depends on nothing that changes while a server runs."""

    content: bytes

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send_bytes(send, 200, self.content, "application/json")


__all__ = ["OpenAPI", "body_schema", "document"]
