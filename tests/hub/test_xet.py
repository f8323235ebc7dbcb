"""Files that come through Xet: hf_xet brings them, and our own hash has the last word."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from mlxengine import hub as client
from mlxengine._hub import access
from mlxengine.errors import CorruptFileError

from tests.hub.content import MIB, random_model, same
from tests.hub.server import HubServer
from tests.hub.xet import XetStore

FILES = random_model(20, 2 * MIB, 2 * MIB)
SHARDS = sorted(name for name in FILES if name.endswith(".safetensors"))


@pytest.fixture
def xet(hub: HubServer, hub_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> XetStore:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(access, "Policy", functools.partial(access.Policy, xet_above=MIB))
    (tmp_path / "store").mkdir()
    hub.repos.add("org/name", FILES)
    hub.xet = XetStore(tmp_path / "store")
    return hub.xet


def test_the_stock_client_reads_from_the_store(hub: HubServer, xet: XetStore) -> None:
    path = hf_hub_download("org/name", SHARDS[0], endpoint=hub.endpoint)
    assert Path(path).read_bytes() == FILES[SHARDS[0]]
    assert hub.log.entries("/xet-read-token/")
    assert hub.log.bytes() == 0


def test_a_file_above_the_limit_comes_through_xet_and_is_verified(hub: HubServer, xet: XetStore) -> None:
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint)
    assert same(path, FILES)
    assert client.verify("org/name", deep=True).ok
    assert hub.log.entries("/xet-read-token/")
    assert hub.log.bytes("safetensors") < MIB  # the headers


def test_other_content_from_the_store_is_found_and_not_ready(hub: HubServer, xet: XetStore) -> None:
    first, second = (hub.repos["org/name"].head.files[name] for name in SHARDS)
    assert first.size == second.size
    xet.swap(first, second)
    with pytest.raises(CorruptFileError):
        client.fetch("org/name", files=["*"], endpoint=hub.endpoint)
    assert not any(model.ready for model in client.list_local())


def test_below_the_limit_xet_is_not_asked(
    hub: HubServer, xet: XetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "Policy", access.Policy.func)  # type: ignore[attr-defined]
    assert same(client.fetch("org/name", files=["*"], endpoint=hub.endpoint), FILES)
    assert not hub.log.entries("/xet-read-token/")


def test_repair_fetches_a_bad_file_from_the_store_again(hub: HubServer, xet: XetStore) -> None:
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint)
    blob = (path / SHARDS[1]).resolve()
    blob.write_bytes(b"\0" * len(FILES[SHARDS[1]]))
    assert client.repair("org/name", endpoint=hub.endpoint) == (SHARDS[1],)
    assert same(path, FILES)
