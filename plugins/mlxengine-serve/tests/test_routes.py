"""A plugin's own paths: behind the same door as all others, imported late, left out where broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlxengine import Route, TextRequest, hookimpl
from mlxengine.errors import InvalidParameterError
from mlxengine_serve import Door, Key, ServerOptions
from serve_harness import Scripted, Served, serving, write_model


class WithRoutes(Scripted):
    """A scripted plugin with paths of its own."""

    @hookimpl
    def list_routes(self) -> Sequence[Route]:
        return [
            Route(path="/v1/shout", target="shouting_routes:shout"),
            Route(path="/v1/broken", target="shouting_routes:nothing", methods=["GET"]),
            Route(path="/health", target="shouting_routes:shout", methods=["GET"]),
        ]


class WithBrokenRoutes(Scripted):
    """Lists what is no route."""

    @hookimpl
    def list_routes(self) -> Sequence[Route]:
        return ["/v1/x"]  # type: ignore[list-item]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("shouting_routes")

    def shout(door: Door) -> Any:
        async def app(scope: Any, _receive: Any, send: Any) -> None:
            if b"refuse" in scope["query_string"]:
                raise InvalidParameterError("Not so loud.")
            handle = await door.model("scripted" if not scope["query_string"] else "other")
            result = await handle.run(TextRequest(prompt="x"))
            text = "".join(getattr(event, "text", "") for event in result.events).upper()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": text.encode()})

        return app

    made.shout = shout  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shouting_routes", made)
    return made


@pytest.fixture
def routed(tmp_path: Path, module: ModuleType) -> Iterator[Served]:
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], keys=[Key.of("s3cret")])
    with serving(options, WithRoutes()) as served:
        served.client.headers["x-api-key"] = "s3cret"
        yield served


def test_a_plugins_path_is_served_with_the_servers_models(routed: Served) -> None:
    assert routed.post("/v1/shout").text == "HELLO WORLD"
    assert routed.post("/v1/shout?other").json()["error"]["code"] == "model_not_found"
    assert routed.post("/v1/shout?refuse").status_code == 400
    assert routed.get("/v1/shout").status_code == 405


def test_it_stands_behind_the_same_door_as_all_others(routed: Served) -> None:
    assert routed.post("/v1/shout", headers={"x-api-key": "wrong"}).status_code == 401
    assert routed.post("/v1/shout", headers={"host": "evil.example"}).status_code == 403
    assert routed.get("/health").json() == {"status": "ok"}, "the server's own go before"


def test_a_path_that_cannot_be_made_is_an_error_of_its_own(routed: Served) -> None:
    answer = routed.get("/v1/broken")
    assert (answer.status_code, "cannot be made" in answer.text) == (500, True)
    assert routed.post("/v1/shout").status_code == 200


def test_a_list_that_is_broken_is_left_out(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "scripted")
    with serving(ServerOptions(models=[f"scripted={folder}"]), WithBrokenRoutes()) as served:
        assert served.post("/v1/x").status_code == 404
        assert served.get("/health").status_code == 200
