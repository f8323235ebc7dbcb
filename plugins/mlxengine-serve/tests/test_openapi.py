"""The document of ``/openapi.json`` says what the server takes, and what it says is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mlxengine_serve import Key, ServerOptions
from mlxengine_serve._fields import Fate
from mlxengine_serve.app import DIALECTS, dialect
from serve_harness import Scripted, Served, serving, write_model
from test_malformed import NAMES, VALID

OTHERS = (True, 0.5, "odd", {"odd": 1}, [[["odd"]]])


@pytest.fixture(scope="module")
def mock() -> Iterator[Served]:
    with serving(ServerOptions(models=list(NAMES.values()), max_pixels=64 * 64), backend="mock") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


@pytest.fixture(scope="module")
def said(mock: Served) -> Any:
    return mock.get("/openapi.json").json()


def body_of(said: Any, path: str) -> Any:
    return said["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_every_path_and_every_field_of_its_table_is_there(said: Any) -> None:
    assert said["openapi"] == "3.1.0"
    assert {*DIALECTS, "/health", "/ready", "/metrics", "/v1/models", "/v1/engine/{type}"} <= set(
        said["paths"]
    )
    assert "/v1/models/load" not in said["paths"], "clients may not"
    assert said["paths"]["/v1/engine/{type}"]["parameters"][0]["name"] == "type"
    for path in DIALECTS:
        table = dialect(path).table
        fields = {item.name: item for item in (*table.fields, *table.extra)}
        schema = body_of(said, path)
        assert set(schema["properties"]) == set(fields)
        for name, found in schema["properties"].items():
            assert found["description"].startswith(fields[name].fate)
            for one in found.get("anyOf", [found]):  # what programs that make clients cannot read
                assert "enum" not in one
                assert "items" in one or one.get("type") != "array"


@pytest.mark.parametrize("path", DIALECTS)
def test_what_the_document_allows_is_served_and_what_it_does_not_is_refused_by_name(
    mock: Served, said: Any, path: str
) -> None:
    schema = body_of(said, path)
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = {"max_tokens": 2, **VALID[path]} if path != "/v1/messages/count_tokens" else VALID[path]
    jsonschema.validate(valid, schema)
    assert mock.post(path, VALID[path]).status_code == 200
    for name in schema["required"]:
        left = {key: value for key, value in VALID[path].items() if key != name}
        assert mock.post(path, left).status_code == 400, f"{name} was not needed"
    table = dialect(path).table
    for field in (*table.fields, *table.extra):
        check = jsonschema.Draft202012Validator(schema["properties"][field.name])
        if field.fate is Fate.CALLERS:
            assert all(map(check.is_valid, OTHERS))
            continue
        if field.name not in schema["required"]:
            assert check.is_valid(None)
            answer = mock.post(path, {**VALID[path], field.name: None})
            assert answer.status_code in (200, 400), answer.text
            assert field.name in VALID[path] or answer.status_code == 200, (field.name, answer.text)
        wrong = [value for value in OTHERS if not check.is_valid(value)]
        assert wrong, f"{field.name} may be anything"
        for value in wrong:
            answer = mock.post(path, {**VALID[path], field.name: value})
            assert answer.status_code in (400, 404), (field.name, value, answer.text[:300])
            assert field.name in answer.text, (field.name, value, answer.text[:300])


def test_keys_management_and_plugins_routes_are_said_where_there_are_some(tmp_path: Path) -> None:
    options = ServerOptions(
        models=[f"a={write_model(tmp_path / 'a')}"], manage=True, keys=[Key.of("secret", "me")]
    )
    with serving(options, Scripted()) as made:
        assert made.get("/openapi.json").status_code == 401
        found = made.get("/openapi.json", headers={"x-api-key": "secret"}).json()
    assert {"/v1/models/load", "/v1/models/unload"} <= set(found["paths"])
    assert found["security"] == [{"bearer": []}, {"x-api-key": []}]
