"""A token, and the password in an address, are sent to the hub and repeated nowhere."""

from __future__ import annotations

import base64
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session
from mlxengine import InferenceEngine
from mlxengine import hub as client
from mlxengine.cli import main
from mlxengine.errors import InvalidParameterError, MLXEngineError

from tests.hub.content import MIB, random_model, same
from tests.hub.server import HubServer, User

FILES = random_model(40, MIB)
CANARY = "hf_CanaryCanaryCanaryCanary"
BAD = {
    "a line break": f"{CANARY}\n{CANARY}",
    "CRLF and a header": f"{CANARY}\r\nX-Other: {CANARY}",
    "a carriage return": f"{CANARY}\r{CANARY}",
    "NUL": f"{CANARY}\0{CANARY}",
    "a letter with an accent": f"{CANARY}é",
    "a space": f"{CANARY} {CANARY}",
    "a tab": f"{CANARY}\t{CANARY}",
    "DEL": f"{CANARY}\x7f",
    "C1": f"{CANARY}\x9b{CANARY}",
    "a letter that is no Latin": f"{CANARY}токен",
    "a line separator": f"{CANARY}\u2028{CANARY}",
    "half a character": f"{CANARY}\ud83d",
    "an emoji": f"🤗{CANARY}",
    "a byte order mark": f"\ufeff{CANARY}",
    "a dash from a word processor": f"{CANARY}–{CANARY}",
}
SOURCES = ("token=", "the environment", "the old name in the environment", "the stored file")


@pytest.fixture(autouse=True)
def own_client(hub_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    close_session()
    yield
    close_session()


def _give(token: str, source: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pass a token in this way; returns what is passed as an argument."""
    if source == "token=":
        return {"token": token}
    if source == "the stored file":
        (home / "token").write_bytes(token.encode("utf-8", "surrogatepass"))
        return {}
    name = "HF_TOKEN" if source == "the environment" else "HUGGING_FACE_HUB_TOKEN"
    if "\0" in token:
        return {"token": token}  # no environment holds it
    monkeypatch.setenv(name, token.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    return {}


def everything(error: BaseException | None) -> Iterator[str]:
    """All texts of an error and of what it came from."""
    if error is not None:
        yield from (str(error), repr(error), repr(error.args), str(getattr(error, "hint", "")))
        yield "".join(traceback.format_exception(error))
        yield from everything(error.__cause__)
        yield from everything(error.__context__)


def _repeated(texts: Iterator[str] | list[str], *words: str) -> list[str]:
    return [text for text in texts if any(word in text for word in words)]


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("what", BAD)
def test_a_token_that_no_header_may_carry_is_refused_at_once_and_not_repeated(
    hub: HubServer,
    hub_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    source: str,
) -> None:
    hub.repos.add("org/name", FILES)
    token = _give(BAD[what], source, hub_home, monkeypatch)
    calls: dict[str, Callable[[], object]] = {
        "fetch": lambda: client.fetch("org/name", endpoint=hub.endpoint, cache_dir=tmp_path, **token),
        "search": lambda: client.search("name", endpoint=hub.endpoint, **token),
        "load": lambda: _load(hub, tmp_path, token),
    }
    for name, call in calls.items():
        start = time.monotonic()
        with caplog.at_level(logging.DEBUG), pytest.raises(InvalidParameterError) as caught:
            call()
        assert time.monotonic() - start < 1.5, name
        assert caught.value.hint
        assert not caught.value.recoverable
        assert not _repeated([*everything(caught.value), *_logged(caplog)], CANARY), name
    assert not hub.log.entries()  # no server saw any of it


def _load(hub: HubServer, cache: Path, token: dict[str, Any]) -> None:
    with InferenceEngine(plugins=[], endpoint=hub.endpoint, cache_dir=cache, **token) as engine:
        try:
            engine.load("org/name")
        finally:
            told = [engine.metrics(), engine._options, engine.health(), engine.status()]
            assert not _repeated([repr(value) for value in told], CANARY)


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "token="])
@pytest.mark.parametrize("what", [what for what in BAD if what != "NUL"])
def test_the_command_line_does_not_repeat_it_either(
    hub: HubServer,
    hub_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    source: str,
) -> None:
    hub.repos.add("org/name", FILES)
    _give(BAD[what], source, hub_home, monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    for words in (["pull", "org/name", "-vv"], ["pull", "org/name", "--json"], ["search", "x", "-vv"]):
        assert main(words) == 2
    shown = capsys.readouterr()
    assert "token" in shown.out
    assert "token" in shown.err
    assert not _repeated([shown.out, shown.err], CANARY)


def test_doctor_does_not_repeat_it_either(
    hub: HubServer, hub_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _give(BAD["a line break"], "the environment", hub_home, monkeypatch)
    endpoint = hub.endpoint.replace("//", f"//me:{CANARY}@")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    main(["doctor", "--network", "--json"])
    main(["doctor", "--network", "-vv"])
    monkeypatch.delenv("HF_TOKEN")
    main(["doctor", "--network", "-vv"])
    shown = capsys.readouterr()
    assert "hub" in shown.out
    assert not _repeated([shown.out, shown.err], CANARY)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("around", [" {}", "{}\n", "\r\n{}\r\n", "\t{} ", "{}\u00a0"])
def test_white_space_around_a_token_is_taken_off(
    hub: HubServer, hub_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, around: str
) -> None:
    hub.repos.add("org/name", FILES, gated="manual")
    hub.users[CANARY] = User("good")
    token = _give(around.format(CANARY), source, hub_home, monkeypatch)
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, **token)
    assert same(path, FILES)


@pytest.mark.parametrize("token", [b"hf_bytes", 7, True, ["hf_list"]])
def test_a_token_that_is_no_text_is_refused(hub: HubServer, tmp_path: Path, token: Any) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        client.fetch("org/name", endpoint=hub.endpoint, cache_dir=tmp_path, token=token)
    assert not _repeated(list(everything(caught.value)), "hf_")


def test_an_empty_token_sends_none(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    hub.repos.add("org/name", FILES)
    client.resolve("org/name", endpoint=hub.endpoint, cache_dir=tmp_path, token="")
    assert {entry.authorization for entry in hub.log.entries()} == {None}


# ---- the hub itself, or something on the way, says the secret back


@pytest.mark.parametrize("status", [400, 401, 403, 404, 416, 429, 500, 501, 503])
@pytest.mark.parametrize("place", ["/api/models/", "/resolve/"])
def test_a_hub_that_says_the_token_back_is_not_repeated(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, place: str
) -> None:
    hub.repos.add("org/name", FILES)
    hub.users[CANARY] = User("good")
    echo = {"X-Error-Message": f"bad token {CANARY}", "X-Request-Id": CANARY, "Retry-After": "9999"}
    echo["X-HF-Warning"] = f"{status}{place}; {CANARY}"
    hub.faults.add("status", place, status=status, headers=echo, times=None)
    with caplog.at_level(logging.INFO), pytest.raises(MLXEngineError) as caught:
        client.fetch("org/name", endpoint=hub.endpoint, cache_dir=tmp_path, token=CANARY)
    assert not _repeated([*everything(caught.value), *_logged(caplog)], CANARY)


# ---- an address with user and password

PASSWORD = "pa%24swordCanary"
TROUBLE: dict[str, Callable[[HubServer], object]] = {
    "nothing": lambda hub: None,
    "403": lambda hub: hub.faults.add("status", times=None, status=403),
    "404": lambda hub: hub.faults.add("status", times=None, status=404),
    "500 for long": lambda hub: hub.faults.add(
        "status", times=None, status=500, headers={"Retry-After": "999"}
    ),
    "501": lambda hub: hub.faults.add("status", times=None, status=501),
    "429 for long": lambda hub: hub.faults.add(
        "status", times=None, status=429, headers={"Retry-After": "999"}
    ),
    "no commit": lambda hub: object.__setattr__(hub.repos["org/name"].head, "sha", "none"),
    "no JSON": lambda hub: hub.faults.add("corrupt", "/api/", times=None),
    "gated": lambda hub: setattr(hub.repos["org/name"], "gated", "manual"),
    "a redirect to nowhere": lambda hub: hub.faults.add(
        "status", times=None, status=302, headers={"Location": "ftp://elsewhere/"}
    ),
    "a redirect to itself": lambda hub: hub.faults.add(
        "status", times=None, status=302, headers={"Location": "/"}
    ),
    "it is gone": lambda hub: hub.stop(),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_the_password_of_an_address_is_repeated_nowhere(
    hub: HubServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    hub.repos.add("org/name", FILES)
    endpoint = hub.endpoint.replace("//", f"//me:{PASSWORD}@")
    TROUBLE[trouble](hub)
    error: MLXEngineError | None = None
    with caplog.at_level(logging.DEBUG):
        try:
            client.fetch("org/name", endpoint=endpoint, cache_dir=tmp_path, token="")
        except MLXEngineError as caught:
            error = caught
        main(["pull", "org/name", "--endpoint", endpoint, "--cache-dir", str(tmp_path), "-vv"])
        main(["search", "x", "--endpoint", endpoint, "--json"])
    assert (error is None) == (trouble == "nothing")
    shown = capsys.readouterr()
    proof = base64.b64encode(f"me:{unquote(PASSWORD)}".encode()).decode()
    for text in [*everything(error), *_logged(caplog), shown.out, shown.err]:
        assert "Canary" not in text
        assert proof not in text
    sent = {entry.authorization for entry in hub.log.entries(server="hub")}
    assert sent <= {f"Basic {proof}"}
    assert sent or trouble == "it is gone"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://me:{}@host:99999",
        "http://me:{}@host:port",
        "http://me:{}@[::1",
        "http://me:{}@",
        "http://me:{}@" + "h" * 64 + ".org",
        "ftp://me:{}@host",
        "me:{}@host",
        "http:/me:{}@host",
        "http://me:a/{}@host",
        "http://me:{}/a@host",
        "http://me:a?{}@host",
        "http://me:{}?a@host",
        "http://me:a#{}@host",
        "http://me:{}#a@host",
        "http://me:[{}@host",
        "http://me:℀{}@host",
        "http://me:{}/℀@host",
        "http://me:{}\n@host",
        "http://me:{}@host name",
        "http://me:{}@ho\u202est",
    ],
)
def test_the_password_of_an_address_that_is_none_is_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    address = endpoint.format(CANARY)
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(MLXEngineError) as caught:
            client.fetch("org/name", endpoint=address, cache_dir=tmp_path)
        main(["pull", "org/name", "--endpoint", address, "--cache-dir", str(tmp_path), "-vv"])
    shown = capsys.readouterr()
    assert not _repeated([*everything(caught.value), *_logged(caplog), shown.out, shown.err], CANARY)


@pytest.mark.parametrize("scheme", ["socks5", "socks4", "gopher", "http"])
def test_the_password_of_a_proxy_is_not_repeated(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
) -> None:
    place = urlsplit(hub.endpoint).netloc if scheme == "http" else "127.0.0.1:9"
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:{CANARY}@{place}")
    with caplog.at_level(logging.INFO), pytest.raises(MLXEngineError) as caught:
        client.fetch("org/name", endpoint="http://192.0.2.1", cache_dir=tmp_path)
    assert not _repeated([*everything(caught.value), *_logged(caplog)], CANARY)
