"""Promises 11 to 13: offline, giving up, and tokens."""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path

import pytest
from mlxengine import hub as client
from mlxengine.errors import (
    CancelledError,
    GatedModelError,
    HubAuthError,
    HubUnavailableError,
    MLXEngineError,
    OfflineError,
)

from tests.hub.content import MIB, random_model, same, total
from tests.hub.processes import Download, until
from tests.hub.server import HubServer, User

FILES = random_model(10, 6 * MIB, 4 * MIB)
CANARY = "hf_CanaryCanaryCanaryCanary"


# ---- 11: no network


@pytest.mark.parametrize("how", ["the hub is down", "HF_HUB_OFFLINE", "offline=True", "a commit id"])
def test_a_ready_model_is_there_within_a_second_without_a_request(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    reference, offline = "org/name", how == "offline=True"
    if how == "the hub is down":
        hub.stop()
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how == "a commit id":
        reference = f"org/name@{hub.repos['org/name'].head.sha}"
    hub.log.clear()
    start = time.monotonic()
    path = client.fetch(reference, files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, offline=offline)
    assert time.monotonic() - start < 1.0
    assert same(path, FILES)
    assert not hub.log.entries()


def test_a_hub_that_hangs_does_not_hold_up_a_ready_model(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.faults.add("delay", times=None, seconds=30)
    start = time.monotonic()
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    assert time.monotonic() - start < 1.5
    assert same(path, FILES)


def test_offline_and_incomplete_names_the_missing_files(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    client.fetch("org/name", files=["*.json"], endpoint=hub.endpoint, cache_dir=tmp_path)
    with pytest.raises(OfflineError) as caught:
        client.fetch("org/name", files=["*"], cache_dir=tmp_path, offline=True)
    assert "model-00001-of-00002.safetensors" in str(caught.value)
    with pytest.raises(OfflineError, match="all of its files"):
        client.fetch("org/other", files=["*"], cache_dir=tmp_path, offline=True)
    hub.stop()
    with pytest.raises(HubUnavailableError):
        client.fetch("org/other", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)


# ---- 12: giving up


def test_a_cancel_returns_within_a_second_and_the_next_call_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    slow = hub.faults.add("slow", "safetensors", times=None, rate=6 * MIB)
    stop = threading.Event()
    left: list[float] = []

    def run() -> None:
        with pytest.raises(CancelledError):
            client.fetch(
                "org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, cancelled=stop.is_set
            )
        left.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    assert until(lambda: hub.log.bytes() > 4 * MIB)
    asked = time.monotonic()
    stop.set()
    thread.join(10)
    assert left[0] - asked < 1.0
    slow.rate = 1 << 40
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path), FILES)
    assert hub.log.bytes() - total(FILES) <= 2 * MIB


@pytest.mark.parametrize("kind", ["slow", "stall", "delay"])
def test_a_cancel_is_felt_whatever_the_hub_is_doing(hub: HubServer, tmp_path: Path, kind: str) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add(kind, "resolve.*safetensors", times=None, rate=100_000, after=200_000, seconds=20, skip=2)
    asked: list[float] = []

    def cancelled() -> bool:
        if hub.log.bytes() > 150_000 and len(hub.log.entries("safetensors")) > 2:
            asked.append(time.monotonic())
        return bool(asked) and time.monotonic() - asked[0] > 0.3

    with pytest.raises(CancelledError):
        client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, cancelled=cancelled)
    assert time.monotonic() - asked[0] < 1.3
    if kind != "delay":  # no thread is left behind, waiting for bytes that nobody wants
        assert until(lambda: not [t for t in threading.enumerate() if t.name.startswith("mlxengine-hub")], 1)


def test_ctrl_c_ends_the_process_within_a_second(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    slow = hub.faults.add("slow", "safetensors", times=None, rate=4 * MIB)
    process = Download("ours", hub.endpoint, tmp_path, "org/name")
    assert until(lambda: hub.log.bytes() > 3 * MIB)
    start = time.monotonic()
    process.process.send_signal(signal.SIGINT)
    process.process.communicate(timeout=10)
    assert time.monotonic() - start < 1.0
    assert process.process.returncode in (-signal.SIGINT, 130)
    slow.rate = 1 << 40
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path), FILES)
    assert hub.log.bytes() - total(FILES) <= 2 * MIB


# ---- 13: tokens


@pytest.fixture
def gated(hub: HubServer) -> HubServer:
    hub.cdn_mode = True
    hub.repos.add("org/name", FILES, gated="manual")
    hub.users |= {CANARY: User("good"), "hf_not_accepted": User("other", frozenset())}
    return hub


def test_a_gated_model_opens_to_a_good_token_alone(gated: HubServer, tmp_path: Path) -> None:
    for token, error in (
        (None, GatedModelError),
        ("hf_not_accepted", GatedModelError),
        ("hf_bad", HubAuthError),
    ):
        with pytest.raises(error) as caught:
            client.fetch("org/name", files=["*"], endpoint=gated.endpoint, cache_dir=tmp_path, token=token)
        assert caught.value.hint
        if error is GatedModelError:
            assert f"{gated.endpoint}/org/name" in str(caught.value)
    path = client.fetch("org/name", files=["*"], endpoint=gated.endpoint, cache_dir=tmp_path, token=CANARY)
    assert same(path, FILES)


def test_the_token_never_reaches_another_origin(gated: HubServer, tmp_path: Path) -> None:
    gated.faults.add("reset", "/cdn/", after=MIB)
    client.fetch("org/name", files=["*"], endpoint=gated.endpoint, cache_dir=tmp_path, token=CANARY)
    sent = gated.log.entries(server="cdn")
    assert len(sent) >= 3
    assert all(entry.authorization is None for entry in sent)
    assert all(CANARY not in entry.path for entry in sent)
    assert all(CANARY in (entry.authorization or "") for entry in gated.log.entries("/resolve/"))


def test_the_token_is_in_no_log_error_event_or_file(
    gated: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    with caplog.at_level(logging.DEBUG):
        for fault in ("none", "status", "corrupt", "gone"):
            gated.faults.clear()
            if fault == "status":
                gated.faults.add("status", "safetensors", status=403, times=None)
            elif fault == "corrupt":
                gated.faults.add("corrupt", "/cdn/", offset=MIB, times=None)
            elif fault == "gone":
                gated.repos["org/name"].private = True
                gated.users[CANARY].repos = frozenset()
            cache, events = tmp_path / fault, []
            try:
                client.fetch(
                    "org/name",
                    files=["*"],
                    endpoint=gated.endpoint,
                    cache_dir=cache,
                    token=CANARY,
                    report=events.append,
                )
            except MLXEngineError as error:
                chain: BaseException | None = error
                while chain is not None:
                    seen += [str(chain), repr(chain)]
                    chain = chain.__cause__ or chain.__context__
            seen += [repr(event) for event in events]
    seen += [record.getMessage() for record in caplog.records] + [repr(r.args) for r in caplog.records]
    assert len(seen) > 20
    assert not [text for text in seen if CANARY in text]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.endswith("ready.json") for path in written)
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
