"""Connections that mean no good: nobody else waits for them, and each ends in form and in time."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mlxengine import Finished, Request, TextDelta
from mlxengine_serve import ServerOptions, _uvicorn
from mlxengine_serve.app import DIALECTS
from serve_harness import Scripted, Served, serving, write_model
from test_malformed import NAMES, VALID

PATH = "/v1/chat/completions"
WORD = {"messages": [{"role": "user", "content": "hi"}]}
PATHS = list(DIALECTS)


@pytest.fixture(scope="module")
def mock() -> Iterator[Served]:
    options = ServerOptions(models=list(NAMES.values()), max_pixels=64 * 64, max_steps=4)
    with serving(options, backend="mock") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error.get("code", code) == code


# -- bodies --------------------------------------------------------------------------------------------------


def beside(path: str, field: str, value: str) -> bytes:
    """A valid body with one field more, as it is written."""
    return f'{json.dumps(VALID[path])[:-1]}, "{field}": {value}}}'.encode()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_refused_wherever_it_stands(mock: Served, path: str, value: str) -> None:
    answer = mock.client.post(path, content=beside(path, "whatever", f"[{value}]"))
    refused(answer, 400, "invalid_json")
    assert value in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
def test_a_name_that_stands_twice_is_refused_for_one_of_them_would_be_ignored(
    mock: Served, path: str
) -> None:
    name = next(iter(VALID[path]))
    refused(mock.client.post(path, content=beside(path, name, '"other"')), 400, "invalid_json")
    inner = b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}'
    refused(mock.client.post(PATH, content=inner), 400, "invalid_json")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("depth", [100, 490, 900, 100_000])
@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_nesting_of_any_depth_ends_in_form(mock: Served, path: str, depth: int, kind: str) -> None:
    nested = "[" * depth + "]" * depth if kind == "[]" else '{"a":' * depth + "1" + "}" * depth
    for field in (*VALID[path], "tools", "whatever"):
        body = {key: value for key, value in VALID[path].items() if key != field}
        text = json.dumps({**body, "@": 0}).replace('"@": 0', f'"{field}": {nested}')
        answer = mock.client.post(path, content=text.encode())
        assert answer.status_code in (200, 400, 404), (field, answer.text[:200])
        assert "internal_error" not in answer.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e308", "9" * 30, "9" * 5000, "-1", "1e-320"])
def test_numbers_of_any_size_end_in_form(mock: Served, path: str, number: str) -> None:
    for field in ("max_tokens", "temperature", "top_p", "n", "seed", "top_n", "dimensions", "steps", "stop"):
        base = {key: value for key, value in VALID[path].items() if key != field}
        text = json.dumps({**base, "@": 0}).replace('"@": 0', f'"{field}": {number}')
        answer = mock.client.post(path, content=text.encode())
        assert answer.status_code in (200, 400), (field, answer.text[:200])


@pytest.mark.parametrize("path", PATHS)
def test_a_compressed_body_is_refused_by_name(mock: Served, path: str) -> None:
    body = gzip.compress(json.dumps(VALID[path]).encode())
    refused(
        mock.client.post(path, content=body, headers={"content-encoding": "gzip"}),
        415,
        "unsupported_encoding",
    )
    plain = {"content-encoding": "identity"}
    assert mock.client.post(path, content=json.dumps(VALID[path]), headers=plain).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [b'{"a": "\xe9"}', b"a=1&b=2", b"--x\r\n\r\n--x--", b"\x00", b"\xff\xfe{"])
def test_what_is_no_text_of_json_is_refused_whatever_its_type_is_called(
    mock: Served, path: str, body: bytes
) -> None:
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "odd"):
        code = "invalid_form" if "multipart" in kind and path == "/v1/images/edits" else "invalid_json"
        refused(mock.client.post(path, content=body, headers={"content-type": kind}), 400, code)


MANY = 60_000


@pytest.mark.parametrize(
    ("path", "head", "item"),
    [
        (PATH, '{"messages":[', '{"role":"user","content":"x"}'),
        ("/v1/responses", '{"input":[', '{"role":"user","content":"x"}'),
        ("/v1/messages", '{"max_tokens":1,"messages":[', '{"role":"user","content":"x"}'),
    ],
)
def test_a_huge_array_holds_up_nobody_else(mock: Served, path: str, head: str, item: str) -> None:
    over, longest = threading.Event(), 0.0
    body = f"{head}{','.join([item] * MANY)}]}}".encode()

    def ask() -> None:
        answer = mock.client.post(path, content=body, timeout=120)
        assert answer.status_code in (200, 400), answer.text[:200]
        over.set()

    asking, asked = threading.Thread(target=ask), time.monotonic()
    asking.start()
    with httpx2.Client(base_url=mock.url, trust_env=False, timeout=60) as other:
        while not over.is_set():
            began = time.monotonic()
            other.get("/health")
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.005)
            assert asking.is_alive() or over.is_set(), "it failed"
    asking.join()
    assert longest < max(0.5, (time.monotonic() - asked) / 3)


# -- connections ---------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server of this test's alone."""
    folder = write_model(tmp_path / "scripted")
    options = ServerOptions(models=[f"scripted={folder}"], body_seconds=0.6)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with serving(options, Scripted()) as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        yield served


def raw(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)))
    made.settimeout(5)
    return made


def ended(connection: socket.socket) -> bytes:
    """What a connection still says until it is closed."""
    said = b""
    try:
        while more := connection.recv(4096):
            said += more
    except ConnectionResetError:
        pass
    return said


HEAD = b"POST %s HTTP/1.1\r\nhost: localhost\r\n" % PATH.encode()


@pytest.mark.parametrize(
    ("first", "then", "answered"),
    [
        pytest.param(b"", b"", b"", id="nothing at all"),
        pytest.param(b"POST /v1", b"", b"", id="half a line"),
        pytest.param(HEAD, b"x-a: b\r\n", b"", id="a header now and then"),
        pytest.param(
            HEAD + b"content-length: 900\r\n\r\n{", b" ", b"408", id="a byte of the body now and then"
        ),
        pytest.param(
            HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n", b"408", id="chunks"
        ),
        pytest.param(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", b"G", b"200", id="a second request"),
    ],
)
def test_a_slow_sender_is_given_up_in_time(
    own: Served, monkeypatch: pytest.MonkeyPatch, first: bytes, then: bytes, answered: bytes
) -> None:
    monkeypatch.setattr(_uvicorn, "HEAD_SECONDS", 0.6)
    with raw(own) as connection:
        connection.sendall(first)
        began = time.monotonic()
        try:
            for _ in range(12):
                time.sleep(0.1)
                connection.sendall(then)
        except OSError:
            pass
        said = ended(connection)
        assert answered in said
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 5000),
        (b"GET /", b"a" * 5000),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X: a\r\n" * 1000),
        (b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 1000),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /", b"a" * 5000),
    ],
    ids=["value", "path", "headers", "trailers", "next"],
)
def test_headers_without_end_end_the_connection(own: Served, start: bytes, more: bytes) -> None:
    with raw(own) as connection:
        connection.sendall(start)
        with pytest.raises(ConnectionError):
            for _ in range(2000):  # 10 MB, of which the connection's buffers may hold a part
                connection.sendall(more)


def test_a_slow_but_honest_request_is_served(own: Served) -> None:
    body = json.dumps(WORD).encode()
    with raw(own) as connection:
        for piece in (HEAD[:20], HEAD[20:], b"content-length: %d\r\n\r\n" % len(body), body[:9], body[9:]):
            connection.sendall(piece)
            time.sleep(0.1)
        assert b"200" in connection.recv(4096)


def test_a_long_answer_outlives_the_time_that_a_request_has_to_begin(
    own: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_uvicorn, "HEAD_SECONDS", 0.6)
    assert own.plugin is not None

    def slow(_request: Request) -> Iterator[Any]:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            time.sleep(0.01)
            yield None
        yield TextDelta(text="late")
        yield Finished()

    own.plugin.plan = slow
    assert own.post(PATH, WORD).json()["choices"][0]["message"]["content"] == "late"


def test_a_thousand_connections_at_once_are_all_served_and_none_stays(own: Served) -> None:
    host, port = own.url.removeprefix("http://").split(":")
    body = json.dumps(WORD).encode()
    request = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        found = await reader.read()
        writer.close()
        return found

    async def crowd() -> tuple[list[bytes], list[int]]:
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
        asked = [asyncio.ensure_future(one()) for _ in range(1000)]
        well = []
        while not all(item.done() for item in asked):
            well.append((await asyncio.to_thread(own.get, "/health")).status_code)
            await asyncio.sleep(0.05)
        answers = [item.result() for item in asked]
        for _, writer in idle:
            writer.close()
        return answers, well

    answers, well = asyncio.run(crowd())
    assert [answer[9:12] for answer in answers] == [b"200"] * 1000
    assert all(answer.endswith(b"}") and b"Hello world" in answer for answer in answers)
    assert set(well) == {200}
    assert own.plugin is not None
    own.wait_until(lambda: own.plugin.alive == 0)  # type: ignore[union-attr]
    assert "mlxengine_http_open 1.0" in own.get("/metrics").text, "its own"
