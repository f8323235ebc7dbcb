"""Promise 1: whatever moment a process is killed at, the next one goes on, and nothing false is ready."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from mlxengine import hub as client

from tests.hub.content import MIB, leftovers, random_model, same, total
from tests.hub.processes import ROOT, Download, until
from tests.hub.server import HubServer

RATE = 12 * MIB


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_after_sigkill_at_most_1_mib_per_file_in_flight_is_sent_again(
    hub: HubServer, tmp_path: Path, fraction: float
) -> None:
    files = random_model(1, 8 * MIB, 4 * MIB)
    hub.repos.add("org/name", files)
    slow = hub.faults.add("slow", "safetensors", times=None, rate=RATE)
    process = Download("ours", hub.endpoint, tmp_path, "org/name")
    assert until(lambda: hub.log.bytes() >= fraction * total(files))
    process.kill()
    assert not _ready(tmp_path)
    slow.rate = 1 << 40
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    excess = hub.log.bytes() - total(files)
    assert 0 <= excess <= 2 * MIB
    assert same(path, files)
    assert _ready(tmp_path)
    assert leftovers(tmp_path) == []


def _ready(cache: Path, repo: str = "org/name") -> bool:
    return any(model.id == repo and model.ready for model in client.list_local(cache_dir=cache))


def _random_kills(hub: HubServer, folder: Path, kills: int, seed: int) -> None:
    print("seed", seed)
    source, done, run = random.Random(seed), 0, 0
    while done < kills:
        run += 1
        files = random_model(source.randrange(1 << 30), *(source.randint(1, 3 * MIB) for _ in range(3)))
        repo, cache = f"org/run-{run}", folder / str(run)
        hub.repos.add(repo, files)
        hub.log.clear()
        killed = 0
        for _ in range(source.randint(1, 3)):
            hub.faults.clear()
            hub.faults.add("slow", f"{repo}/resolve.*safetensors", times=None, rate=RATE)
            process = Download("ours", hub.endpoint, cache, repo)
            point = hub.log.bytes() + source.randint(0, total(files))
            until(lambda point=point, process=process: hub.log.bytes() >= point or not process.running, 20)
            finished = not process.running
            process.kill()
            killed += not finished
            if _ready(cache, repo):
                (revision,) = (m for m in client.list_local(cache_dir=cache)[0].revisions if m.ready)
                assert same(revision.path, files), f"falsely ready in run {run}"
        hub.faults.clear()
        path = client.fetch(repo, files=["*"], endpoint=hub.endpoint, cache_dir=cache)
        assert same(path, files), f"wrong content in run {run}"
        assert client.verify(repo, deep=True, cache_dir=cache).ok
        assert leftovers(cache) == []
        assert hub.log.bytes() - total(files) <= killed * 3 * MIB
        done += killed


def test_random_kills_never_leave_a_false_ready(hub: HubServer, tmp_path: Path) -> None:
    _random_kills(hub, tmp_path, 3, seed=random.randrange(1 << 30))


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_kill_before_any_step_on_the_file_system_leaves_nothing_false(
    hub: HubServer, tmp_path: Path, every: int
) -> None:
    files = random_model(11, 200_000, 150_000)
    hub.repos.add("org/name", files)
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub.stepwise", hub.endpoint, str(tmp_path), "org/name", str(every)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 100 // every, done.stderr
    for line in lines:
        cache = tmp_path / str(line["step"])
        assert line["again"] == 0, line
        (path,) = (m.path for model in client.list_local(cache_dir=cache) for m in model.revisions)
        assert same(path, files), line
        assert leftovers(cache) == [], line
        assert [path.name for path in (cache / "models--org--name" / "refs").iterdir()] == ["main"], line
    assert hub.log.bytes() <= len(lines) * (total(files) + 400_000)


def test_what_a_kill_left_in_our_folder_is_swept_up_later(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", random_model(12, 1000))
    folder = tmp_path / "models--org--name" / "mlxengine"
    folder.mkdir(parents=True)
    old, new = folder / ".1-old", folder / ".2-new"
    for stray in (old, new):
        stray.symlink_to("nowhere")
    os.utime(old, (0, 0), follow_symlinks=False)
    client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    assert [path.name for path in folder.glob(".*")] == [new.name]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_random_kills_never_leave_a_false_ready(hub: HubServer, tmp_path: Path) -> None:
    _random_kills(hub, tmp_path, 50, seed=random.randrange(1 << 30))
