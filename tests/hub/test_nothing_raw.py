"""Whatever an address, a proxy, a certificate, a header or an answer is like: a typed error, or it works."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import pytest
from huggingface_hub import close_session
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlxengine import hub as client
from mlxengine._hub import access
from mlxengine._hub.access import Policy, retry_after
from mlxengine.errors import ConfigurationError, HubUnavailableError, MLXEngineError, ModelNotFoundError

from tests.hub.content import MIB, random_model, same
from tests.hub.server import HubServer
from tests.hub.tiny import safetensors

FILES: dict[str, bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": safetensors({"w": 64}),
}
META = {"tags": ["mlx", "license:mit"], "pipeline_tag": "text-generation", "downloads": 7}
LOCAL = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt, and little time: here it is told what an answer becomes, not how often it is asked."""
    quick = Policy(connect=0.5, read=0.5, answer=2.0, attempts=1)
    monkeypatch.setattr(access, "usual_policy", lambda: quick, raising=False)


@pytest.fixture(autouse=True)
def own_client(hub_home: Path) -> Iterator[None]:
    close_session()
    yield
    close_session()


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server is asked: what is not on loopback does not exist."""
    find = socket.getaddrinfo

    def local(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("127.0.0.1", "::1", "localhost"):
            return find(host, *arguments, **options)
        if isinstance(host, str):
            host.encode("idna")  # what the real one does first
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", local)


def _ends_well(call: Callable[[], object]) -> BaseException | None:
    """The typed error that the call ends with, if it does; anything else is raised."""
    found: MLXEngineError | None = None
    try:
        call()
    except MLXEngineError as error:
        found = error
    text = str(found).replace("\n", " ")
    assert text.isprintable()
    assert len(text) < 2000
    return found


def _ask(endpoint: str, **options: Any) -> BaseException | None:
    with tempfile.TemporaryDirectory() as cache:
        searched = _ends_well(lambda: client.search("name", endpoint=endpoint))
        return _ends_well(lambda: client.fetch("org/name", endpoint=endpoint, cache_dir=cache)) or searched


# ---- addresses

HOSTS = [
    *("127.0.0.1", "[::1]", "localhost", "[::1", "::1]", "[", "[]", "[::g]", "[v1.x]", "", ".", "..", "a..b"),
    *(
        "h" * 63,
        "h" * 64,
        "h" * 300,
        ".".join(["h" * 60] * 6),
        "é" * 64,
        "é",
        "xn--",
        "xn--é",
        "-",
        "_",
        "*",
        "%",
    ),
    *(
        "%zz",
        "%00",
        "a b",
        "a\tb",
        "a\nb",
        "a\0b",
        "a\u202eb",
        "a\ud800b",
        "\u2028",
        "☃",
        "１２７.0.0.1",
        "0x7f.1",
    ),
    *(
        "256.256.256.256",
        "1.2.3",
        "127.0.0.1.",
        "a,b",
        "a;b",
        "<a>",
        '"a"',
        "{a}",
        "a|b",
        "a\\b",
        "ß",
        "ı",
        "。",
    ),
]
PORTS = [
    "",
    ":",
    ":0",
    ":1",
    ":65535",
    ":00",
    ":65536",
    ":99999999999",
    ":-1",
    ":+1",
    ":1e3",
    ":x",
    ":１",
    ":²",
    ": 1",
    ":1:1",
]
SCHEMES = [
    "http://",
    "https://",
    "HTTP://",
    "ftp://",
    "file://",
    "//",
    "",
    "http:",
    "http:/",
    "://",
    "ws://",
    "é://",
]
TAILS = ["", "/", "/prefix", "?a=b", "#a", "/%zz", "/a b", "/\u202e", "/é", "//", "/../.."]
USERS = ["", "me@", "me:pw@", ":@", "@", "a@b@", "me:p%zz@", "é:é@", "me:p\n@", "\ud800@"]

addresses = st.one_of(
    st.tuples(
        st.sampled_from(SCHEMES),
        st.sampled_from(USERS),
        st.one_of(st.sampled_from(HOSTS), st.text(max_size=8)),
        st.sampled_from(PORTS),
        st.sampled_from(TAILS),
    ).map("".join),
    st.text(max_size=30),
    st.builds("http://{}".format, st.text(max_size=30)),
)


@LOCAL
@given(address=addresses)
@example("not a url")
@example("http://127.0.0.1:99999")
@example("http://[::1")
@example("http://" + "h" * 64 + ".org")
@example("http://127.0.0.1:²")
def test_any_endpoint_ends_in_a_typed_error(once: None, no_names: None, address: str) -> None:
    if address.strip().rstrip("/"):  # nothing is the default
        assert _ask(address) is not None


def test_each_odd_part_of_an_address_ends_in_a_typed_error_soon(no_names: None, once: None) -> None:
    odd = [f"http://{host}" for host in HOSTS]
    odd += [f"http://127.0.0.1{port}" for port in PORTS if port not in ("", ":")]
    odd += [f"{scheme}127.0.0.1:1" for scheme in SCHEMES] + [f"http://{user}127.0.0.1:1" for user in USERS]
    odd += [f"http://127.0.0.1:1{tail}" for tail in TAILS]
    for address in odd:
        start = time.monotonic()
        assert _ask(address) is not None, address
        assert time.monotonic() - start < 3.0, address


@LOCAL
@given(location=addresses)
@example("http://127.0.0.1:99999/")
@example("http://[::1/")
@example("//" + "h" * 64)
@example("http://[v1.x]/")
def test_any_redirect_ends_in_a_typed_error(
    hub: HubServer, once: None, no_names: None, location: str
) -> None:
    try:
        location.encode("latin-1")
    except UnicodeEncodeError:
        location = location.encode("utf-8", "surrogatepass").decode("latin-1")
    location = location.replace("\r", "").replace("\n", "")
    hub.repos.add("org/name", FILES)
    for place in ("/api/models/", "/resolve/"):
        hub.faults.clear()
        hub.faults.add("status", place, status=302, times=None, headers={"Location": location})
        with tempfile.TemporaryDirectory() as cache:
            assert _ends_well(lambda: client.fetch("org/name", endpoint=hub.endpoint, cache_dir=cache))


# ---- proxies and certificates

PROXIES = [
    *(
        "socks5://127.0.0.1:9",
        "socks4://127.0.0.1:9",
        "socks5h://127.0.0.1:9",
        "gopher://127.0.0.1",
        "127.0.0.1",
    ),
    *(
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://" + "h" * 64,
        "http://",
        "x",
        "http://127.0.0.1:x",
        ":",
        "@",
    ),
    *(
        "ftp://127.0.0.1",
        "http:///",
        "http://é",
        "http://127.0.0.1:9\n",
        "http://a b",
        "https://127.0.0.1:9",
        "\u202e",
    ),
]
VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"]


@pytest.mark.parametrize("variable", VARIABLES)
def test_any_proxy_ends_in_a_typed_error_or_is_not_used(
    hub: HubServer, once: None, no_names: None, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    hub.repos.add("org/name", FILES)
    for proxy in PROXIES:
        close_session()
        monkeypatch.setenv(variable, proxy)
        start = time.monotonic()
        _ask(hub.endpoint)
        assert time.monotonic() - start < 4.0, proxy


@pytest.mark.parametrize(
    "value", ["[::1", "http://[", "a:99999", "*", ",", "é", " ", "::1", "[::1]:x", "h" * 300]
)
def test_any_exception_from_the_proxies_ends_in_a_typed_error_or_works(
    hub: HubServer, once: None, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    hub.repos.add("org/name", FILES)
    monkeypatch.setenv("NO_PROXY", value)
    _ask(hub.endpoint)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize(
    "what", ["missing", "empty", "a folder", "garbage", "half a certificate", "a closed file"]
)
def test_any_certificates_end_in_a_typed_error_or_work(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, what: str
) -> None:
    hub.repos.add("org/name", FILES)
    place = tmp_path / "ca"
    if what == "a folder":
        place.mkdir()
    elif what != "missing":
        content = {"garbage": b"\xff" * 100, "half a certificate": b"-----BEGIN CERTIFICATE-----\nMIIB"}
        place.write_bytes(content.get(what, b""))
    if what == "a closed file":
        place.chmod(0)
    monkeypatch.setenv(variable, str(place))
    start = time.monotonic()
    error = _ask(hub.endpoint)
    assert time.monotonic() - start < 2.0
    if variable == "SSL_CERT_FILE":
        assert isinstance(error, HubUnavailableError)
        assert not error.recoverable
        assert "SSL_CERT_FILE" in str(error)


@pytest.mark.parametrize("value", ["abc", "", "-5", "0", "1e3", "nan", "²", "10 s"])
def test_any_time_out_in_the_environment_ends_in_a_typed_error_or_works(value: str) -> None:
    words = ["search", "x", "--json", "--endpoint", "http://127.0.0.1:1"]
    environment = os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": value, "MLXENGINE_CONFIG": os.devnull}
    done = subprocess.run(
        [sys.executable, "-m", "mlxengine", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (2, 3), done.stdout + done.stderr
    assert json.loads(done.stdout)["error"]["type"] in ("InvalidParameterError", "HubUnavailableError")


# ---- headers

ODD = [
    *(
        "",
        " ",
        "x",
        "-1",
        "+1",
        "0",
        "1",
        "1.5",
        "1e9",
        "nan",
        "inf",
        "-inf",
        "²",
        "１",
        "9" * 400,
        "9" * 5000,
        "0x10",
    ),
    *(
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Thu, 99 Foo 99999 99:99:99 GMT",
        "Mon, 01 Jan 0001 00:00:00 -2359",
        ",",
        ";",
    ),
    *(
        "bytes 0-",
        "bytes */*",
        "bytes -1-5/10",
        "bytes 0-9/" + "9" * 500,
        "gzip",
        "br",
        "identity, gzip",
        "chunked",
    ),
    *(
        '<http://[::1>; rel="next"',
        '<>; rel="next"',
        '<http://127.0.0.1:99999/>; rel="next"',
        "<",
        "rel=next",
        "<a>;",
    ),
    *(
        "GatedRepo",
        "RepoNotFound",
        "EntryNotFound",
        "RevisionNotFound",
        "close",
        "\x80\xff",
        "a" * 60_000,
        "\t",
        "\x0b",
    ),
]
NAMES = [
    *(
        "Retry-After",
        "Content-Length",
        "Content-Range",
        "Content-Encoding",
        "Content-Type",
        "Link",
        "Location",
        "ETag",
    ),
    *(
        "X-Error-Code",
        "X-Error-Message",
        "X-Repo-Commit",
        "Transfer-Encoding",
        "Connection",
        "Set-Cookie",
        "Date",
    ),
    *("X-HF-Warning", "X-Linked-Size", "RateLimit", "RateLimit-Policy", "X-Request-Id", "Accept-Ranges"),
]


@settings(LOCAL, max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    value=st.one_of(
        st.sampled_from(ODD),
        st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20),
    ),
    status=st.sampled_from(
        [None, 302, 304, 400, 401, 403, 404, 408, 416, 418, 429, 500, 503, 511, 599, 600, 999]
    ),
    place=st.sampled_from(["/api/models", "/resolve/.*json", "/resolve/.*safetensors"]),
)
def test_any_header_of_any_answer_ends_in_a_typed_error_or_works(
    hub: HubServer, once: None, name: str, value: str, status: int | None, place: str
) -> None:
    hub.repos.add("org/name", FILES, meta=META)
    hub.faults.clear()
    if status is not None:
        hub.faults.add("status", place, status=status, times=None)
    hub.faults.add("set_header", place, header=name, value=value, times=None)
    _ask(hub.endpoint)


@given(st.one_of(st.none(), st.text(max_size=40), st.sampled_from(ODD), st.from_regex(r"[0-9]{1,400}")))
@settings(deadline=None, database=None)
def test_any_retry_after_is_a_number_or_nothing(value: str | None) -> None:
    found = retry_after(value)
    assert found is None or found >= 0


def test_a_retry_after_without_end_is_not_waited_for(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    for value in ("9" * 400, "9" * 5000, "1e9", "-5", "nan"):
        hub.faults.clear()
        hub.faults.add("status", "/api/models/", status=503, headers={"Retry-After": value})
        start = time.monotonic()
        _ends_well(lambda: client.resolve("org/name", endpoint=hub.endpoint, cache_dir=tmp_path))
        assert time.monotonic() - start < 2.0


# ---- every field of every answer as every JSON type

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        7,
        1.5,
        -0.0,
        1e308,
        float("inf"),
        float("nan"),
        2**53,
        2**63,
        10**40,
        -(10**400),
    ),
    *(
        "",
        "x",
        "7",
        "../x",
        "a\u202eb",
        "\x9b2J",
        "\ud800",
        "é" * 200,
        "a" * 40,
        "f" * 64,
        [],
        [7],
        [None],
        ["x"],
    ),
    *([["x"]], [{}], {}, {"x": 7}, {"": None}, {"sha256": 7}, {"size": -1}, {"license": ["mit"]}),
]
json_values = st.recursive(
    st.one_of(st.sampled_from(VALUES), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*here, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


LISTING: dict[str, Any] = {
    "id": "org/name",
    "sha": "a" * 40,
    "lastModified": "2026-01-01T00:00:00.000Z",
    "gated": False,
    "downloads": 7,
    "likes": 1,
    "library_name": "mlx",
    "pipeline_tag": "text-generation",
    "tags": ["mlx", "license:mit"],
    "config": {"model_type": "llama", "quantization_config": {"bits": 4}, "quantization": {"bits": 4}},
    "cardData": {"license": "mit"},
    "usedStorage": 1000,
    "safetensors": {"parameters": {"F16": 10, "U32": 5}, "total": 15},
    "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": "b" * 40},
        {
            "rfilename": "model.safetensors",
            "size": 10,
            "blobId": "c" * 40,
            "lfs": {"sha256": "d" * 64, "size": 10, "pointerSize": 130},
        },
    ],
}
PATHS = list(_paths(LISTING))


def _typed_results(found: tuple[client.SearchResult, ...]) -> None:
    for item in found:
        assert isinstance(item.id, str)
        assert item.id.isascii()
        for value in (
            item.commit,
            item.kind,
            item.quantization,
            item.license,
            item.architecture,
            item.last_modified,
        ):
            assert value is None or isinstance(value, str)
        for number in (item.weight_bytes, item.storage_bytes):
            assert number is None or (type(number) is int and number >= 0)
        assert item.parameters is None or isinstance(item.parameters, float)
        assert type(item.downloads) is int
        assert type(item.likes) is int
        assert all(isinstance(tag, str) for tag in item.tags)


def _answers(hub: HubServer, listing: Any) -> None:
    """Ask everything that reads such an answer."""
    hub.faults.clear()
    hub.faults.add("replace", "/api/models/", body=json.dumps(listing).encode(), times=None)
    hub.faults.add("replace", r"/api/models\?", body=json.dumps([listing]).encode(), times=None)
    with tempfile.TemporaryDirectory() as cache:
        _ends_well(lambda: client.resolve("org/name", endpoint=hub.endpoint, cache_dir=cache))
        _ends_well(lambda: client.plan("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=cache))
        _ends_well(lambda: _typed_results(client.search("x", kind="embed", endpoint=hub.endpoint)))
        _ends_well(lambda: client.search("x", sort="updated", kind="embed", endpoint=hub.endpoint))
        _ends_well(lambda: client.search("x", sort="likes", kind="embed", endpoint=hub.endpoint))
        client.list_local(cache_dir=cache)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)) or "all")
def test_each_field_of_an_answer_may_be_anything(hub: HubServer, once: None, path: tuple[Any, ...]) -> None:
    for value in VALUES:
        _answers(hub, _changed(LISTING, path, value))


@settings(LOCAL, max_examples=80)
@given(
    changes=st.lists(st.tuples(st.sampled_from(PATHS[1:]), json_values), min_size=1, max_size=3),
    alone=st.booleans(),
    whole=json_values,
)
def test_several_fields_of_an_answer_may_be_anything(
    hub: HubServer, once: None, changes: list[tuple[tuple[Any, ...], Any]], alone: bool, whole: Any
) -> None:
    listing: Any = LISTING
    for path, value in changes:
        try:
            listing = _changed(listing, path, value)
        except (TypeError, LookupError):
            continue  # an earlier change took the place away
    _answers(hub, whole if alone else listing)


@settings(LOCAL, max_examples=60)
@given(body=st.one_of(st.binary(max_size=40), json_values.map(lambda value: json.dumps(value).encode())))
def test_any_body_of_any_answer_ends_in_a_typed_error_or_works(
    hub: HubServer, once: None, body: bytes
) -> None:
    hub.repos.add("org/name", FILES)
    for place in ("/api/models", "/resolve/.*json", "/resolve/.*safetensors"):
        hub.faults.clear()
        hub.faults.add("replace", place, body=body, times=None)
        _ask(hub.endpoint)


# ---- what cannot be mended is not tried again


def _unmendable(hub: HubServer) -> dict[str, tuple[str, Callable[[], object]]]:
    port = hub.endpoint.rpartition(":")[2]
    always: dict[str, Any] = {"times": None}

    def redirect(place: str, target: str) -> Callable[[], object]:
        return lambda: hub.faults.add("status", place, status=302, headers={"Location": target}, **always)

    found: dict[str, tuple[str, Callable[[], object]]] = {
        address: (address, lambda: None)
        for address in (
            *(
                "not a url",
                "hub.example.org",
                "ftp://127.0.0.1",
                "http://",
                "http://127.0.0.1:99999",
                "http://[::1",
            ),
            *("http://" + "h" * 64, "http://a..b", "http://127.0.0.1:x", "file:///etc", "http://a b"),
        )
    }
    found |= {"TLS where none is spoken": (f"https://127.0.0.1:{port}", lambda: None)}
    for place in ("/api/models/", "/resolve/"):
        for target in (
            "file:///etc/passwd",
            "http://127.0.0.1:99999/",
            "http://[::1/",
            "//" + "h" * 64,
            "/itself",
        ):
            found[f"{place} → {target[:30]}"] = (hub.endpoint, redirect(place, target))
        for status in (400, 401, 403, 404, 410, 418, 451, 501, 505):
            found[f"{place} {status}"] = (
                hub.endpoint,
                lambda place=place, status=status: hub.faults.add("status", place, status=status, **always),
            )
    found["/resolve/ encoded"] = (
        hub.endpoint,
        lambda: hub.faults.add("set_header", "/resolve/", header="Content-Encoding", value="gzip", **always),
    )
    found["no JSON"] = (
        hub.endpoint,
        lambda: hub.faults.add("replace", "/api/models/", body=b"<html>", **always),
    )
    found["a listing that is none"] = (
        hub.endpoint,
        lambda: hub.faults.add("replace", "/api/models/", body=b"[]", **always),
    )
    return found


NAMES_OF_UNMENDABLE = list(_unmendable(HubServer()))


@pytest.mark.parametrize("number", range(len(NAMES_OF_UNMENDABLE)), ids=NAMES_OF_UNMENDABLE)
def test_what_cannot_be_mended_is_not_tried_again(hub: HubServer, tmp_path: Path, number: int) -> None:
    hub.repos.add("org/name", random_model(41, MIB))
    endpoint, spoil = list(_unmendable(hub).values())[number]
    spoil()
    start = time.monotonic()
    with pytest.raises(MLXEngineError) as caught:
        client.fetch("org/name", files=["*"], endpoint=endpoint, cache_dir=tmp_path)
    assert time.monotonic() - start < 2.0
    assert not caught.value.recoverable or isinstance(caught.value, ConfigurationError)
    asked = [entry.path for entry in hub.log.entries()]
    assert len(asked) == len(set(asked)) or "/itself" in asked


def test_a_proxy_that_wants_a_password_is_not_asked_again(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", hub.endpoint)  # it answers 501 to CONNECT
    start = time.monotonic()
    with pytest.raises(HubUnavailableError):
        client.resolve("org/name", endpoint="https://192.0.2.1", cache_dir=tmp_path)
    assert time.monotonic() - start < 4.0


def test_what_may_pass_is_tried_again(hub: HubServer, tmp_path: Path) -> None:
    """The other side: none of this makes the client impatient."""
    files = random_model(42, MIB)
    hub.repos.add("org/name", files)
    for kind in ("reset_early", "status"):
        hub.faults.add(kind, "/api/models/", times=2)
        hub.faults.add(kind, "/resolve/", times=2)
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path), files)


def test_a_refusal_in_another_language_is_the_refusal_that_it_is(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.add("set_header", "/api/models/", header="X-Error-Message", value="modèle", times=None)
    with pytest.raises(ModelNotFoundError):
        client.resolve("org/none", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_client_that_something_else_closes_is_replaced(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos.add("org/name", FILES)
    get_session, given = huggingface_hub.utils.get_session, []

    def closed_at_first() -> Any:
        given.append(get_session())
        if len(given) == 1:
            close_session()
        return given[-1]

    monkeypatch.setattr(huggingface_hub.utils, "get_session", closed_at_first)
    assert client.resolve("org/name", endpoint=hub.endpoint, cache_dir=tmp_path).commit
    assert given[0].is_closed
    assert given[1] is not given[0]
