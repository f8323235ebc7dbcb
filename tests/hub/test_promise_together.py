"""Promise 3: processes that want the same model at once send each byte once, and survive each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlxengine import hub as client

from tests.hub.content import MIB, leftovers, random_model, same, total
from tests.hub.processes import Download, until
from tests.hub.server import HubServer

FILES = random_model(3, 6 * MIB, 5 * MIB, 4 * MIB)


@pytest.mark.parametrize("clients", [("ours",) * 4, ("ours", "stock", "ours", "stock")])
def test_four_processes_fetch_each_byte_once(
    hub: HubServer, tmp_path: Path, clients: tuple[str, ...]
) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("slow", "safetensors", times=None, rate=8 * MIB)
    running = [Download(kind, hub.endpoint, tmp_path, "org/name") for kind in clients]
    results = [process.result() for process in running]
    assert all("path" in result for result in results), results
    assert all(same(Path(result["path"]), FILES) for result in results)
    assert leftovers(tmp_path) == []
    # a stock process that takes a file over starts it again: it loses what we had read of the header
    pieces = 3 * 128 * 1024 if "stock" in clients else 0
    assert total(FILES) <= hub.log.bytes() <= total(FILES) + pieces
    assert client.verify("org/name", deep=True, cache_dir=tmp_path).ok


def test_when_the_locks_owner_is_killed_another_goes_on_from_there(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    slow = hub.faults.add("slow", "safetensors", times=None, rate=4 * MIB)
    owner = Download("ours", hub.endpoint, tmp_path, "org/name")
    assert until(lambda: hub.log.bytes() > total(FILES) // 3)
    waiting = [Download("ours", hub.endpoint, tmp_path, "org/name") for _ in range(2)]
    # they have arrived when they have asked the hub which commit it is
    assert until(lambda: len(hub.log.entries("/api/models/")) >= 3)
    owner.kill()
    slow.rate = 1 << 40
    results = [process.result() for process in waiting]
    assert all(same(Path(result["path"]), FILES) for result in results), results
    assert hub.log.bytes() - total(FILES) <= 3 * MIB  # three files were in flight


def test_threads_of_one_process_fetch_each_byte_once(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("slow", "safetensors", times=None, rate=30 * MIB)

    def fetch(_number: int) -> Path:
        return client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)

    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(fetch, range(4)))
    assert len(paths) == 1
    assert same(paths.pop(), FILES)
    assert hub.log.bytes() == total(FILES)


def test_two_commits_that_share_a_file_fetch_it_once(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.repos.add("org/name", FILES)
    old = repo.head.sha
    repo.commit({"config.json": b'{"model_type": "llama", "seed": 99}'})
    paths = [
        client.fetch(f"org/name@{revision}", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
        for revision in ("main", old)
    ]
    assert same(paths[1], FILES)
    assert (paths[0] / "config.json").read_bytes() != FILES["config.json"]
    assert hub.log.bytes() == total(FILES) + repo.head.files["config.json"].size
