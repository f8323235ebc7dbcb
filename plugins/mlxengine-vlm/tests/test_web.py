"""Pictures by URL: a prompt cannot make this machine ask its own network, nor keep it busy."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mlxengine.errors import UnsupportedInputError
from mlxengine.toolkit import web
from mlxengine.toolkit.web import fetch, is_public

pytestmark = pytest.mark.feature("vlm.urls")
HOSTS = ("127.0.0.1",)


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        getattr(self, "serve_" + self.path.strip("/").partition("/")[0])()

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def serve_ok(self) -> None:
        self.head(Content_Length="5", Content_Type="image/png")
        self.wfile.write(b"hello")

    def serve_html(self) -> None:
        self.head(Content_Type="text/html; charset=utf-8")
        self.wfile.write(b"<html>")

    def serve_packed(self) -> None:
        self.head(Content_Type="image/png", Content_Encoding="gzip")

    def serve_large(self) -> None:
        self.head(Content_Type="image/png", Content_Length=str(10**12))

    def serve_endless(self) -> None:
        self.head(Content_Type="image/png")
        try:
            while True:
                self.wfile.write(bytes(65536))
        except OSError:
            pass

    def serve_short(self) -> None:
        self.head(Content_Type="image/png", Content_Length="50")
        self.wfile.write(b"hello")

    def serve_dripping(self) -> None:
        self.head(Content_Type="image/png", Content_Length="100")
        self.drip()

    def serve_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.drip()

    def drip(self) -> None:
        try:
            for _ in range(200):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def serve_away(self) -> None:
        self.head(302, Location=self.server.target)  # type: ignore[attr-defined]

    def serve_loop(self) -> None:
        self.head(302, Location="/loop")

    def serve_near(self) -> None:
        self.head(307, Location="ok")

    def serve_gone(self) -> None:
        self.head(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def url(server: Any, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.server_port}/{path}"


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "::127.0.0.1",
    "2001:0:7f00:1::",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_known_in_every_wrapping(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "127.0.0.1.",
        "0",
        "134744072",
    ],
)
def test_a_host_of_this_machine_is_refused_in_every_form(server: Any, host: str) -> None:
    with pytest.raises(UnsupportedInputError, match=r"not a public address|unusual form"):
        fetch(url(server, "ok", host), 100)


def test_a_host_that_the_user_names_is_asked(server: Any) -> None:
    assert fetch(url(server, "ok"), 100, HOSTS) == b"hello"
    assert fetch(url(server, "near"), 100, HOSTS) == b"hello"


def test_a_name_with_one_private_address_among_public_ones_is_refused() -> None:
    def resolve(host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("8.8.8.8", "10.0.0.1")]

    with pytest.raises(UnsupportedInputError, match=r"10\.0\.0\.1"):
        fetch("http://example.org/a.png", 100, resolve=resolve)


def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_that_is_asked(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    connect = socket.create_connection

    def resolve(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, 1, 6, "", ("8.8.8.8" if len(asked) == 1 else "127.0.0.1", port))]

    def connecting(address: Any, **options: Any) -> Any:
        asked.append(address[0])
        return connect(("127.0.0.1", address[1]), **options)

    monkeypatch.setattr(socket, "create_connection", connecting)
    assert fetch(url(server, "ok", "rebinding.example"), 100, resolve=resolve) == b"hello"
    assert asked == ["rebinding.example", "8.8.8.8"]


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:1/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "http://user:secret@127.0.0.1/ok",
        "http://2130706433/",
    ],
)
def test_each_redirect_is_checked_again(server: Any, target: str) -> None:
    server.target = target
    with pytest.raises(UnsupportedInputError, match="cannot be fetched") as caught:
        fetch(url(server, "away"), 100, HOSTS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("loop", "redirected more than"),
        ("html", "text/html"),
        ("packed", "gzip"),
        ("large", "at most"),
        ("short", "5 of 50"),
        ("gone", "404"),
    ],
)
def test_what_is_no_picture_or_does_not_end_is_refused_by_name(server: Any, path: str, why: str) -> None:
    with pytest.raises(UnsupportedInputError, match=why):
        fetch(url(server, path), 100, HOSTS)


def test_an_endless_answer_is_read_to_the_limit(server: Any) -> None:
    assert len(fetch(url(server, "endless"), 1000, HOSTS)) == 1001


@pytest.mark.parametrize("path", ["dripping", "headers"])
def test_what_drips_ends_with_the_time_for_all_of_it(server: Any, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnsupportedInputError, match=r"more than 0\.3 s"):
        fetch(url(server, path), 1000, HOSTS, seconds=0.3)
    assert time.monotonic() - began < 2


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UnsupportedInputError, match="user name") as caught:
        fetch("http://somebody:secret@example.org/a?token=secret", 100)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://", "http://[::1", "http://a:99999/", "http://a:b/", "http://\x00/"])
def test_what_is_no_url_is_a_typed_error(text: str) -> None:
    with pytest.raises(UnsupportedInputError):
        fetch(text, 100, resolve=lambda *_a, **_k: [])


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_no_redirect_leads_away_from_encryption(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_one", lambda *_: (b"", "http://example.org/b.png"))
    with pytest.raises(UnsupportedInputError, match="from https to http"):
        fetch(f"{scheme}://example.org/a.png", 100)
