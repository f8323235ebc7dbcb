"""Pictures by URL: none by default; where allowed, none that reaches this machine's own network."""

from __future__ import annotations

import base64
import functools
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import mlxengine.toolkit.web
import pytest
from mlxengine_serve import ServerOptions
from mlxengine_serve._remote import _found
from PIL import Image
from serve_harness import Scripted, Served, serving, write_model

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
EDITS = "/v1/images/edits"
PUBLIC = "93.184.215.14"


def picture() -> bytes:
    found = BytesIO()
    Image.new("RGB", (4, 4), "red").save(found, "PNG")
    return found.getvalue()


PICTURE = picture()


class Web(http.server.BaseHTTPRequestHandler):
    """What stands behind every public address of these tests."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/slow.png":
            time.sleep(3)
        data = {"/large.png": PICTURE + bytes(300_000), "/text.png": b"hello"}.get(self.path, PICTURE)
        self.send_response(404 if self.path == "/none.png" else 200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "image/png")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[Any]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    made.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def names(web: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names stand for, one answer after the other; connections to the public address come to ``web``."""
    found = {"pictures.example": [PUBLIC], "other.example": [PUBLIC], "inside.example": ["10.0.0.5"]}
    connect = socket.create_connection

    def resolve(host: str, port: int, **_: Any) -> Any:
        answers = found.get(host, [host])
        address = answers[0] if len(answers) == 1 else answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def connected(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        assert address[0] in (PUBLIC, "127.0.0.1")
        return connect(web.server_address if address[0] == PUBLIC else address, *rest, **more)

    fetch = functools.partial(mlxengine.toolkit.web.fetch, resolve=resolve)
    monkeypatch.setattr(mlxengine.toolkit.web, "fetch", fetch)
    monkeypatch.setattr(mlxengine.toolkit.web.socket, "create_connection", connected)
    web.asked.clear()
    return found


@pytest.fixture(scope="module")
def allowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    models = [f"m={write_model(folder / 'm')}", f"p={write_model(folder / 'p', kind='diffusion')}"]
    remote = [
        "http://pictures.example",
        "http://inside.example",
        "http://127.0.0.1",
        "http://169.254.169.254",
    ]
    options = ServerOptions(models=models, max_body=200_000, fetch_seconds=1.0, remote_images=remote)
    with serving(options, Scripted()) as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def chat(url: str, count: int = 1) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": url}] + [part] * count}],
    }


def sources(served: Served) -> list[bytes]:
    asked: Any = served.plugin.last  # type: ignore[union-attr]
    return [part.source for message in asked.messages for part in message.parts if hasattr(part, "source")]


URL = "http://pictures.example/a.png"


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(URL)),
        (RESPONSES, {"model": "m", "input": [
            {"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]}),
        (MESSAGES, {"model": "m", "max_tokens": 3, "messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]}]}),
    ],
)  # fmt: skip
def test_a_picture_of_an_allowed_host_comes_to_the_model_in_each_dialect(
    allowing: Served, web: Any, path: str, body: dict[str, Any]
) -> None:
    assert allowing.post(path, body).status_code == 200
    assert sources(allowing) == [PICTURE]
    [(asked, headers)] = web.asked
    assert asked == "/a.png"
    assert not {"cookie", "authorization", "referer"} & {name.lower() for name in headers}


@pytest.mark.usefixtures("names")
def test_edits_take_theirs_by_url_too(allowing: Served) -> None:
    body = {"model": "p", "prompt": "x", "images": [{"image_url": URL}], "mask": {"image_url": URL}}
    allowing.post(EDITS, body)
    assert allowing.plugin.last.init_image == PICTURE  # type: ignore[union-attr]
    data = {"model": "p", "prompt": "x", "image": URL}
    allowing.client.post(EDITS, data=data, files={"mask": ("m.png", PICTURE)})
    assert allowing.plugin.last.init_image == PICTURE  # type: ignore[union-attr]


def test_a_text_that_is_a_url_is_left_alone(allowing: Served, web: Any, names: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": URL}]}
    assert allowing.post(CHAT, body).status_code == 200
    assert web.asked == []


def test_what_a_tool_was_called_with_is_left_alone(allowing: Served, web: Any, names: Any) -> None:
    given = {
        "image_url": "https://pictures.example/a.png",
        "at": {"type": "url", "url": "https://no.example"},
    }
    call = {"type": "tool_use", "id": "a", "name": "draw", "input": given}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "done"}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    before = len(web.asked)
    answer = allowing.post(MESSAGES, {"messages": turns, "max_tokens": 4})
    assert (answer.status_code, len(web.asked)) == (200, before), answer.text
    assert allowing.plugin is not None
    assert given["image_url"] in str(allowing.plugin.last)


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png", "http://inside.example/a.png", "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data/", "http://user:secret@pictures.example/a.png",
        "http://pictures.example/none.png", "http://pictures.example/page",
        "http://pictures.example/text.png", "http://pictures.example/large.png",
        "http://pictures.example/slow.png",
        "http://pictures.example/to/http://inside.example/a.png",
        "http://pictures.example/to/http://127.0.0.1/a.png",
        "http://pictures.example/to/http://other.example/a.png",
        "http://pictures.example/to/file:///etc/passwd",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("names")
def test_what_may_not_be_fetched_is_refused_and_tells_nothing(allowing: Served, url: str) -> None:
    began = time.monotonic()
    answer = allowing.post(CHAT, chat(url))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_url")
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert time.monotonic() - began < 2.5
    texts = {
        allowing.post(CHAT, chat(item)).json()["error"]["message"] for item in ("http://127.0.0.1/", url)
    }
    assert len(texts) == 1, "nobody learns from it what there is in this network"


def test_a_name_that_leads_elsewhere_the_second_time_gains_nothing(
    allowing: Served, names: dict[str, list[str]], web: Any
) -> None:
    names["pictures.example"] = [PUBLIC, "127.0.0.1"]  # the second answer is the attack
    assert allowing.post(CHAT, chat(URL)).status_code == 200
    assert sources(allowing) == [PICTURE]
    assert allowing.post(CHAT, chat(URL)).status_code == 400, "asked anew it leads inside, and is refused"
    assert len(web.asked) == 1


@pytest.mark.usefixtures("names")
def test_many_and_large_ones_keep_within_one_bound(allowing: Served) -> None:
    assert allowing.post(CHAT, chat(URL, count=16)).status_code == 200
    answer = allowing.post(CHAT, chat(URL, count=17))
    assert (answer.status_code, "16 pictures" in answer.text) == (400, True)
    began = time.monotonic()
    assert allowing.post(CHAT, chat("http://pictures.example/slow.png", count=8)).status_code == 400
    assert time.monotonic() - began < 2, "the bound is of all together"


def test_without_leave_nothing_is_fetched(tmp_path: Any, names: Any, web: Any) -> None:
    with serving(ServerOptions(models=[f"m={write_model(tmp_path / 'm')}"]), Scripted()) as made:
        answer = made.post(CHAT, chat(URL))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_url")
        nested: Any = "x"
        for _ in range(400):
            nested = [nested]
        assert made.post(CHAT, {"model": "m", "messages": nested}).status_code == 400
    assert web.asked == []


def test_any_public_host_means_https_alone() -> None:
    from urllib.parse import urlsplit

    from mlxengine_serve._remote import Remote

    def allowed(url: str, *hosts: str) -> bool:
        return Remote(ServerOptions(remote_images=hosts))._permitted(urlsplit(url))

    assert allowed("https://a.example/x", "*")
    assert not allowed("http://a.example/x", "*")
    assert allowed("https://A.example./x", "a.example")
    assert not allowed("https://b.a.example/x", "a.example")
    assert not allowed("ftp://a.example/x", "*", "a.example")
    assert allowed("https://a.example/x", "http://a.example")


def test_a_deep_body_is_no_way_in(allowing: Served) -> None:
    nested: Any = {"image_url": URL}
    for _ in range(300):
        nested = [nested]
    answer = allowing.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": nested}]})
    assert answer.status_code == 400


def test_base64_of_what_came_is_what_was_there(allowing: Served, names: Any) -> None:
    by_url = allowing.post(CHAT, chat(URL)).json()["usage"]
    inline = chat("data:image/png;base64," + base64.b64encode(PICTURE).decode())
    assert allowing.post(CHAT, inline).json()["usage"] == by_url
    assert sources(allowing) == [PICTURE]


def test_a_picture_among_texts_to_embed_is_a_place_for_a_url_and_a_text_there_is_none() -> None:
    body = {"input": [URL, {"image": URL}, {"text": URL}]}
    assert [where for _, where, _ in _found(body, "input", "input")] == ["input[1].image"]
