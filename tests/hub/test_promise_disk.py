"""Promises 7, 9, 10 and 14: too small a disk, repair, what makes a ready model unready, stock's view."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from mlxengine import FileInfo
from mlxengine import hub as client
from mlxengine._hub.access import Access
from mlxengine._hub.cache import RepoCache
from mlxengine._hub.download import Job, good_blob
from mlxengine.errors import CancelledError, CorruptFileError, InsufficientDiskError, OfflineError

from tests.hub.content import MIB, random_model, same, total
from tests.hub.processes import Download
from tests.hub.server import HubServer

SHARDS = random_model(7, MIB, MIB, 2 * MIB, MIB)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if sys.platform != "linux" or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("needs Linux and the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_more_than_the_disk_has_is_refused_before_the_first_byte_of_a_file(
    hub: HubServer, small_disk: Path
) -> None:
    hub.repos.add("org/name", random_model(8, 10 * MIB, 10 * MIB))
    with pytest.raises(InsufficientDiskError, match="needs") as caught:
        client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=small_disk)
    assert caught.value.hint
    # what was read is the configuration and the beginning of each shard, to know what the model is
    assert hub.log.bytes("safetensors") <= 2 * 128 * 1024
    plan = client.plan("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=small_disk)
    assert not plan.fits
    assert plan.need > plan.free


def test_a_disk_that_fills_up_leaves_a_partial_that_goes_on(hub: HubServer, small_disk: Path) -> None:
    files = random_model(9, 8 * MIB)
    hub.repos.add("org/name", files)
    ballast = small_disk / "ballast"
    slow = hub.faults.add("slow", "safetensors", times=None, rate=8 * MIB, skip=1)
    process = Download("ours", hub.endpoint, small_disk / "cache", "org/name")
    while hub.log.bytes() < 2 * MIB and process.running:
        time.sleep(0.005)
    ballast.write_bytes(bytes(6 * MIB))  # somebody else's
    result = process.result()
    assert result["error"] == "InsufficientDiskError", result
    (partial,) = (small_disk / "cache").rglob("*.incomplete")
    kept = partial.stat().st_size
    assert kept > 3 * MIB
    ballast.unlink()
    slow.times = 0
    hub.log.clear()
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=small_disk / "cache")
    assert same(path, files)
    assert hub.log.bytes() <= total(files) - kept


def test_repair_fetches_exactly_the_bad_shard(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", SHARDS)
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    bad = "model-00003-of-00004.safetensors"
    blob = (path / bad).resolve()
    stat = blob.stat()
    blob.write_bytes(b"\0" * stat.st_size)
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert client.verify("org/name", cache_dir=tmp_path).ok  # the quick look cannot know, and says so
    found = client.verify("org/name", deep=True, cache_dir=tmp_path)
    assert [(file.path, file.state) for file in found.bad] == [(bad, client.FileState.CORRUPT)]
    hub.log.clear()
    assert client.repair("org/name", endpoint=hub.endpoint, cache_dir=tmp_path) == (bad,)
    assert hub.log.bytes() == len(SHARDS[bad])
    assert same(path, SHARDS)
    assert client.verify("org/name", deep=True, cache_dir=tmp_path).ok


@pytest.mark.parametrize(
    "how", ["deleted", "blob deleted", "truncated", "grown", "touched", "replaced by a folder"]
)
def test_a_ready_file_that_changes_is_not_ready(hub: HubServer, tmp_path: Path, how: str) -> None:
    hub.repos.add("org/name", SHARDS)
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    name = "model-00002-of-00004.safetensors"
    link, blob = path / name, (path / name).resolve()
    if how == "deleted":
        link.unlink()
    elif how == "blob deleted":
        blob.unlink()
    elif how == "truncated":
        os.truncate(blob, MIB // 2)
    elif how == "grown":
        with blob.open("ab") as stream:
            stream.write(b"\0")
    elif how == "touched":
        os.utime(blob)
    else:
        blob.unlink()
        blob.mkdir()
    report = client.verify("org/name", cache_dir=tmp_path)
    assert [file.path for file in report.bad] == [name]
    if how in ("deleted", "touched"):  # the content is there: it is hashed, and nothing is fetched
        hub.log.clear()
        assert same(client.fetch("org/name", files=["*"], cache_dir=tmp_path, offline=True), SHARDS)
        assert not hub.log.entries()
        return
    with pytest.raises((OfflineError, CorruptFileError)) as caught:
        client.fetch("org/name", files=["*"], cache_dir=tmp_path, offline=True)
    assert name in str(caught.value)
    if how != "replaced by a folder":
        hub.log.clear()
        path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
        assert same(path, SHARDS)
        assert hub.log.bytes() == len(SHARDS[name])


def test_twenty_ready_files_are_checked_in_five_milliseconds(hub: HubServer, tmp_path: Path) -> None:
    from mlxengine._hub.cache import RepoCache

    files = {f"part-{number}.txt": b"x" * number for number in range(20)}
    hub.repos.add("org/name", files | {"config.json": b"{}"})
    client.fetch("org/name", files=["*.txt"], endpoint=hub.endpoint, cache_dir=tmp_path)
    cache = RepoCache(tmp_path, "org/name")
    commit = hub.repos["org/name"].head.sha
    listing = cache.listing(commit)
    assert listing is not None
    wanted = [file for file in listing.files if file.path.endswith(".txt")]
    assert len(wanted) == 20
    times = []
    for _ in range(30):
        start = time.perf_counter()
        assert cache.unready(commit, wanted) == []
        times.append(time.perf_counter() - start)
    assert min(times) <= 0.005


def test_stock_checksums_find_no_mismatch_in_our_cache(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", SHARDS)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    api = HfApi(endpoint=hub.endpoint, token=False)
    checked = api.verify_repo_checksums("org/name", cache_dir=tmp_path)
    assert checked.checked_count == len(SHARDS)
    assert not checked.mismatches
    assert not checked.missing_paths
    assert not checked.extra_paths


def test_a_cancelled_check_says_nothing_about_the_files(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", SHARDS)
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    with pytest.raises(CancelledError):
        client.verify("org/name", deep=True, cache_dir=tmp_path, cancelled=lambda: True)
    answers = iter([False, True])  # for a moment only, while a file is read: it is no less good for that
    with contextlib.suppress(CancelledError):
        job = Job(
            access=Access.of(cache_dir=tmp_path),
            cache=RepoCache(tmp_path, "org/name"),
            commit=path.name,
            cancelled=lambda: next(answers, False),
        )
        name, data = next((name, data) for name, data in SHARDS.items() if len(data) > 1 << 20)
        digest = (path / name).readlink().name
        good_blob(job, FileInfo(path=name, size=len(data), hash=f"sha256:{digest}"), discard=True)
    assert same(path, SHARDS)
