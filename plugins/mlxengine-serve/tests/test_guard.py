"""Who may come, what a body may be, and what nobody is told."""

from __future__ import annotations

import logging
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from mlxengine.errors import InvalidParameterError
from mlxengine_serve import Key, ServerOptions, read_keys
from mlxengine_serve.cli import check_exposure
from mlxengine_serve.options import keys_of
from serve_harness import Served, serving

CHAT = {"model": "mock/llm", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def locked() -> Any:
    options = ServerOptions(
        models=["mock/llm"],
        keys=[Key.of("s3cret", "alice"), Key.of("other", "bob")],
        origins=["https://app.example"],
        hosts=["models.example"],
        max_body=2000,
        body_seconds=0.3,
    )
    with serving(options, backend="mock") as served:
        served.wait_until(lambda: served.get("/ready").status_code == 200)
        yield served


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer s3cret"}, {"authorization": "bearer other"}, {"x-api-key": "s3cret"}],
)
def test_a_key_opens_the_door_in_either_header(locked: Served, headers: dict[str, str]) -> None:
    assert locked.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}, {"x-api-key": ""},
     {"authorization": "Bearer s3cre"}],
)  # fmt: skip
def test_without_a_key_nothing_but_health_is_told(locked: Served, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        answer = locked.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.post("/v1/messages", {}, headers=headers).json()["error"]["type"] == "authentication_error"
    assert locked.get("/health", headers=headers).status_code == 200
    assert locked.get("/ready", headers=headers).status_code == 200


def test_each_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    from mlxengine_serve import options

    real = options.hmac.compare_digest
    monkeypatch.setattr(options.hmac, "compare_digest", lambda a, b: seen.append(a) or real(a, b))
    made = ServerOptions(keys=[Key.of("s3cret"), Key.of("two"), Key.of("three")])
    found = made.key("s3cret")
    assert found is not None
    assert len(seen) == 3, "the loop ended at the first match, and time tells"
    assert "s3cret" not in repr(made)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "evil.example:8080", ""])
def test_a_foreign_host_name_is_refused_as_dns_rebinding_brings_it(locked: Served, host: str) -> None:
    answer = locked.get("/v1/models", headers={"host": host, "x-api-key": "s3cret"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:80", "10.1.2.3:8080", "models.example"])
def test_loopback_names_addresses_and_named_hosts_are_served(locked: Served, host: str) -> None:
    assert locked.get("/v1/models", headers={"host": host, "x-api-key": "s3cret"}).status_code == 200


def test_a_page_of_another_site_may_call_only_where_it_is_named(locked: Served) -> None:
    foreign = locked.get("/v1/models", headers={"origin": "https://evil.example", "x-api-key": "s3cret"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in foreign.headers
    named = locked.get("/v1/models", headers={"origin": "https://app.example", "x-api-key": "s3cret"})
    assert named.headers["access-control-allow-origin"] == "https://app.example"
    before = locked.client.options("/v1/models", headers={"origin": "https://app.example"})
    assert (before.status_code, "x-api-key" in before.headers["access-control-allow-headers"]) == (204, True)
    wanted = (
        "authorization,content-type,last-event-id,x-stainless-lang,anthropic-dangerous-direct-browser-access"
    )
    asking = {"origin": "https://app.example", "access-control-request-headers": wanted}
    allowed = locked.client.options("/v1/models", headers=asking).headers
    assert allowed["access-control-allow-headers"] == wanted, "clients in a page have headers of their own"
    assert "access-control-request-headers" in allowed["vary"]
    own = locked.get("/v1/models", headers={"origin": locked.url, "x-api-key": "s3cret"})
    assert own.status_code == 200


def test_an_unknown_path_and_a_wrong_method_are_said_in_form(locked: Served) -> None:
    headers = {"x-api-key": "s3cret"}
    assert locked.get("/v1/nothing", headers=headers).json()["error"]["code"] == "unknown_url"
    answer = locked.client.delete("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "unknown_url")


def test_logs_hold_neither_keys_nor_prompts(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    locked.get("/v1/models/a-very-private-name", headers={"x-api-key": "s3cret"})
    locked.get("/v1/models?key=hidden", headers={"authorization": "Bearer wrong-secret"})
    locked.wait_until(lambda: "401" in caplog.text)
    ours = "\n".join(item.getMessage() for item in caplog.records if item.name.startswith("mlxengine"))
    assert "alice" in ours
    assert not [word for word in ("s3cret", "wrong-secret", "private", "hidden") if word in ours]


def test_every_answer_has_an_id_of_its_own(locked: Served) -> None:
    first, second = (locked.get("/health").headers["x-request-id"] for _ in range(2))
    assert first.startswith("req_")
    assert first != second


def test_small_answers_are_not_held_back_for_an_acknowledgement(locked: Served) -> None:
    took = []
    for _ in range(9):
        began = time.perf_counter()
        locked.get("/health")
        took.append(time.perf_counter() - began)
    assert sorted(took)[4] < 0.03, "Nagle's algorithm waits 40 ms for the client's delayed acknowledgement"


# -- keys and exposure ------------------------------------------------------------------------------------


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nabc name=alice priority=2 limit=3\ndef\n")
    file.chmod(0o600)
    found = keys_of(file, {"MLXENGINE_SERVE_KEYS": "env1,env2 name=bot"})
    assert [(key.name, key.priority, key.limit) for key in found] == [
        ("key-1", 0, None), ("bot", 0, None), ("alice", 2, 3), ("key-4", 0, None),
    ]  # fmt: skip
    assert "abc" not in repr(found)
    file.chmod(file.stat().st_mode | stat.S_IROTH)
    with pytest.raises(InvalidParameterError, match="Others than its owner"):
        keys_of(file, {})


def test_keys_that_systemd_hands_on_may_be_its_groups(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("abc\n")
    file.chmod(0o440)  # what a service's own user may read looks so: the list of who may counts as the group
    assert len(keys_of(file, {"CREDENTIALS_DIRECTORY": str(tmp_path)})) == 1
    for elsewhere in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path / "other")}):
        with pytest.raises(InvalidParameterError, match="Others than its owner"):
            keys_of(file, elsewhere)
    file.chmod(0o444)
    with pytest.raises(InvalidParameterError, match="Others than its owner"):
        keys_of(file, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize("line", ["abc name=x priority=high", "abc wrong=1", "abc limit=0"])
def test_a_bad_line_of_keys_is_named_without_its_secret(line: str) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read_keys([line])
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "server.example"])
def test_others_are_not_let_in_without_a_key(host: str) -> None:
    with pytest.raises(InvalidParameterError, match="without a key"):
        check_exposure(host, ServerOptions())
    check_exposure(host, ServerOptions(keys=[Key.of("abc")]))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_loopback_needs_no_key(host: str) -> None:
    check_exposure(host, ServerOptions())
