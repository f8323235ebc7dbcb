"""Promise 2: a single wrong bit, on the wire or on the disk, is found, and what has it is not loadable."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from mlxengine import hub as client
from mlxengine.errors import CorruptFileError, HubUnavailableError

from tests.hub.content import random_model, same
from tests.hub.server import HubServer

FILES = random_model(2, 150_000, 40_000)
LFS, PLAIN = "model-00001-of-00002.safetensors", "tokenizer/merges.txt"


def _positions(source: random.Random, count: int) -> list[tuple[str, int, int]]:
    """(file, offset, mask): the first and last byte of an LFS and a plain file first, then anywhere."""
    ends = [(name, at) for name in (LFS, PLAIN) for at in (0, len(FILES[name]) - 1)]
    anywhere = [(name, source.randrange(len(FILES[name]))) for name in source.choices(list(FILES), k=count)]
    return [(name, at, 1 << source.randrange(8)) for name, at in (ends + anywhere)[:count]]


def _flips_on_the_wire(hub: HubServer, folder: Path, count: int, seed: int) -> None:
    print("seed", seed)
    hub.repos.add("org/name", FILES)
    for number, (name, at, mask) in enumerate(_positions(random.Random(seed), count)):
        cache = folder / f"wire-{number}"
        times = None if number % 2 else 1
        hub.faults.clear()
        fault = hub.faults.add("corrupt", f"/resolve/.*/{name}", times=times, offset=at, mask=mask)
        try:
            path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=cache)
        except CorruptFileError:
            assert times is None, f"one flip at {name}:{at} could have been fetched again"
            assert not any(model.ready for model in client.list_local(cache_dir=cache))
        else:
            assert times == 1, f"the flip of {mask:#x} at {name}:{at} was accepted"
            assert same(path, FILES)
        assert fault.hits


def _flips_on_the_disk(hub: HubServer, folder: Path, count: int, seed: int) -> None:
    print("seed", seed)
    hub.repos.add("org/name", FILES)
    cache = folder / "disk"
    path = client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=cache)
    for number, (name, at, mask) in enumerate(_positions(random.Random(seed), count)):
        keep_time = number % 2 == 0
        _flip((path / name).resolve(), at, mask, keep_time=keep_time)
        seen = client.verify("org/name", deep=keep_time, cache_dir=cache)
        assert [file.path for file in seen.bad] == [name], f"the flip of {mask:#x} at {name}:{at} was missed"
        if keep_time:  # rot that keeps size and time: found where it is looked for
            with pytest.raises(CorruptFileError):
                client.fetch("org/name", files=["*"], cache_dir=cache, offline=True, verify="deep")
        else:  # found by every load
            with pytest.raises(CorruptFileError):
                client.fetch("org/name", files=["*"], cache_dir=cache, offline=True)
        hub.log.clear()
        client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=cache, verify="deep")
        assert same(path, FILES)
        assert hub.log.bytes() == len(FILES[name])


def _flip(path: Path, at: int, mask: int, *, keep_time: bool) -> None:
    before = path.stat()
    if not keep_time:
        time.sleep(0.01)  # a file's time has steps of up to 4 ms on Linux
    with path.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ mask]))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_flips_on_the_wire_are_found(hub: HubServer, tmp_path: Path) -> None:
    _flips_on_the_wire(hub, tmp_path, 24, seed=random.randrange(1 << 30))


def test_flips_on_the_disk_are_found(hub: HubServer, tmp_path: Path) -> None:
    _flips_on_the_disk(hub, tmp_path, 24, seed=random.randrange(1 << 30))


def test_a_flip_in_what_a_killed_download_left_is_found(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("status", LFS, times=None, status=404, skip=1)  # the first piece arrives, then nothing
    with pytest.raises(HubUnavailableError):
        client.fetch("org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.faults.clear()
    (partial,) = [p for p in tmp_path.rglob("*.incomplete") if p.stat().st_size >= 50_001]
    _flip(partial, 50_000, 4, keep_time=False)
    events: list[client.HubEvent] = []
    path = client.fetch(
        "org/name", files=["*"], endpoint=hub.endpoint, cache_dir=tmp_path, report=events.append
    )
    assert same(path, FILES)
    assert [event.file for event in events if isinstance(event, client.Corrupt)] == [LFS]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_hundred_flips_on_the_wire_are_found(hub: HubServer, tmp_path: Path) -> None:
    _flips_on_the_wire(hub, tmp_path, 500, seed=random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_hundred_flips_on_the_disk_are_found(hub: HubServer, tmp_path: Path) -> None:
    _flips_on_the_disk(hub, tmp_path, 500, seed=random.randrange(1 << 30))
