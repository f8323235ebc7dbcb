"""Promises 4 to 6 and 8: resets, refusals, stalls and nonsense end in the right bytes or a typed error."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from mlxengine import hub as client
from mlxengine.errors import (
    CorruptFileError,
    DownloadError,
    GatedModelError,
    HubUnavailableError,
    MLXEngineError,
    RateLimitedError,
)

from tests.hub.content import MIB, leftovers, random_model, same, total
from tests.hub.server import HubServer

FILES = random_model(4, 3 * MIB)
SHARD = "model.safetensors"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without a wait, where the waiting itself is not what is tested."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)


def _fetch(hub: HubServer, cache: Path, **options: Any) -> Path:
    return client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=cache, **options)


def _ready(cache: Path) -> bool:
    return any(model.ready for model in client.list_local(cache_dir=cache))


@pytest.mark.parametrize("how", ["reset", "truncate"])
@pytest.mark.parametrize("mib", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_a_connection_that_breaks_every_megabyte_costs_one_percent(
    hub: HubServer, tmp_path: Path, how: str, mib: int
) -> None:
    files = random_model(5, mib * MIB)
    hub.repos.add("org/name", files)
    fault = hub.faults.add(how, SHARD, times=None, after=1_000_000)
    events: list[client.HubEvent] = []
    assert same(_fetch(hub, tmp_path, report=events.append), files)
    assert fault.hits > mib
    assert hub.log.bytes() <= 1.01 * total(files)
    done = [event.done for event in events if isinstance(event, client.Bytes)]
    assert done == sorted(done)
    assert done[-1] == total(files)
    assert all(event.reason for event in events if isinstance(event, client.Retry))


@pytest.mark.parametrize("place", ["/api/models/", "/resolve/.*json", "/resolve/.*safetensors", "/cdn/"])
@pytest.mark.parametrize("status", [503, 500, 408])
def test_five_refusals_in_a_row_are_waited_out(
    hub: HubServer, tmp_path: Path, at_once: None, place: str, status: int
) -> None:
    hub.cdn_mode = place == "/cdn/"
    hub.repos.add("org/name", FILES)
    fault = hub.faults.add("status", place, status=status, times=5)
    assert same(_fetch(hub, tmp_path), FILES)
    assert fault.hits == 5


@pytest.mark.slow
def test_five_refusals_are_waited_out_with_real_waits(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    for place in ("/api/models/", "/resolve/.*json", "/resolve/.*safetensors"):
        hub.faults.add("status", place, times=5)
    assert same(_fetch(hub, tmp_path), FILES)


def test_a_hub_that_asks_for_three_seconds_gets_them(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("status", SHARD, status=429, headers={"Retry-After": "3"})
    events: list[client.HubEvent] = []
    assert same(_fetch(hub, tmp_path, report=events.append), FILES)
    first, second = hub.log.entries(SHARD)[:2]
    assert 3.0 <= second.started - first.started <= 5.0
    assert not hub.log.entries(SHARD, method="HEAD")


def test_a_hub_that_asks_for_an_hour_gets_an_error_that_says_so(
    hub: HubServer, tmp_path: Path, at_once: None
) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("status", SHARD, status=429, headers={"Retry-After": "3600"}, times=None)
    with pytest.raises(RateLimitedError, match="3600 s") as caught:
        _fetch(hub, tmp_path)
    assert caught.value.recoverable


@pytest.mark.parametrize("place", ["/api/models/", SHARD])
def test_a_stall_is_left_within_the_time_out_and_two_seconds(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.repos.add("org/name", FILES)
    hub.faults.add("stall", place, after=100)
    start = time.monotonic()
    assert same(_fetch(hub, tmp_path), FILES)
    stalled, after = hub.log.entries(place)[:2]
    assert stalled.end == "stalled"
    assert 1.0 <= after.started - stalled.started <= 3.0
    assert time.monotonic() - start < 6.0


# ---- 8: answers that make no sense

_Spoil = Callable[[HubServer], object]
NONSENSE: dict[str, tuple[_Spoil, type[MLXEngineError] | None]] = {
    "Range is ignored after a reset": (
        lambda hub: (hub.faults.add("reset", SHARD, skip=1, after=MIB), _always(hub, "ignore_range")),
        None,
    ),
    "another range than was asked for, once": (
        lambda hub: hub.faults.add("wrong_range", SHARD, times=1),
        None,
    ),
    "another range than was asked for, always": (lambda hub: _always(hub, "wrong_range"), DownloadError),
    "another ETag": (lambda hub: _always(hub, "set_header", header="ETag", value='"beef"'), None),
    "no ETag": (lambda hub: _always(hub, "drop_header", header="ETag"), None),
    "no X-Repo-Commit": (lambda hub: _always(hub, "drop_header", header="X-Repo-Commit"), None),
    "no Content-Length": (lambda hub: _always(hub, "drop_header", header="Content-Length"), None),
    "a body that is too long": (lambda hub: _always(hub, "oversize", extra=100_000), None),
    "a body that is too short, once": (lambda hub: hub.faults.add("short_length", SHARD, cut=100), None),
    "a body that is too short, always": (lambda hub: _always(hub, "short_length", cut=100), DownloadError),
    "403 from the CDN in the middle": (
        lambda hub: (
            setattr(hub, "cdn_mode", True),
            hub.faults.add("reset", "/cdn/", skip=1, after=MIB),
            hub.faults.add("status", "/cdn/", skip=2, status=403),
        ),
        None,
    ),
    "403 from the CDN for ever": (
        lambda hub: (
            setattr(hub, "cdn_mode", True),
            hub.faults.add("status", "/cdn/", status=403, times=None),
        ),
        DownloadError,
    ),
    "other content, always": (lambda hub: _always(hub, "corrupt", offset=2 * MIB), CorruptFileError),
    "403 from the hub": (lambda hub: _always(hub, "status", status=403), MLXEngineError),
    "404 for a file that is listed": (lambda hub: _always(hub, "status", status=404), MLXEngineError),
    "a redirect to itself": (
        lambda hub: _always(hub, "status", status=302, headers={"Location": "/org/name/resolve/x"}),
        MLXEngineError,
    ),
    "a redirect to a file address": (
        lambda hub: _always(hub, "status", status=302, headers={"Location": "file:///etc/passwd"}),
        DownloadError,
    ),
    "a compressed body": (
        lambda hub: _always(hub, "set_header", header="Content-Encoding", value="gzip"),
        DownloadError,
    ),
    "a web page instead of the API": (
        lambda hub: hub.faults.add("corrupt", "/api/models/", times=None, offset=0, mask=1),
        HubUnavailableError,
    ),
}


def _always(hub: HubServer, kind: str, **settings: Any) -> object:
    return hub.faults.add(kind, SHARD, times=None, **settings)


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_ends_in_the_right_bytes_or_a_typed_error(
    hub: HubServer, tmp_path: Path, at_once: None, name: str
) -> None:
    spoil, error = NONSENSE[name]
    hub.repos.add("org/name", FILES)
    spoil(hub)
    if error is None:
        events: list[client.HubEvent] = []
        assert same(_fetch(hub, tmp_path, report=events.append), FILES)
        assert not [event for event in events if isinstance(event, client.Corrupt)]
        assert leftovers(tmp_path) == []
        return
    with pytest.raises(error) as caught:
        _fetch(hub, tmp_path)
    assert not _ready(tmp_path)
    assert "org/name" in str(caught.value)
    hub.faults.clear()
    hub.cdn_mode = False
    assert same(_fetch(hub, tmp_path), FILES)


def test_an_address_that_expired_is_asked_for_again(hub: HubServer, tmp_path: Path) -> None:
    hub.cdn_mode = True
    hub.repos.add("org/name", FILES)
    hub.faults.add("reset", "/cdn/", after=MIB, skip=1)
    sign, given = hub.sign, []

    def expiring(*arguments: Any) -> str:
        hub.expire()  # only the newest address is valid
        given.append(sign(*arguments))
        return given[-1]

    hub.sign = expiring  # type: ignore[method-assign]
    assert same(_fetch(hub, tmp_path), FILES)
    assert len(given) == 3  # the header, the file, the rest of the file


def test_a_gated_repository_says_where_its_terms_are(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES, gated="manual")
    with pytest.raises(GatedModelError, match=f"{hub.endpoint}/org/name"):
        _fetch(hub, tmp_path)
