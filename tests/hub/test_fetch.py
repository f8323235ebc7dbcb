"""A fetch is resumed, verified, reported, cancelled and refused as promised; the cache stays a common one."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import hub as public
from mlxengine._hub import access as access_module
from mlxengine._hub import fetch
from mlxengine._hub.access import Access, Policy
from mlxengine._hub.cache import PARTIAL
from mlxengine.errors import (
    CancelledError,
    CorruptFileError,
    DownloadError,
    IncompatibleWeightsError,
    InsufficientDiskError,
    InvalidParameterError,
    ModelNotFoundError,
    RateLimitedError,
)

from tests.hub.fixtures import own_disk
from tests.hub.server import HubServer, User
from tests.hub.tiny import gguf, safetensors

CONFIG = b'{"model_type": "llama"}'
LARGE = safetensors({"w": 5_000_000})
FILES: dict[str, Any] = {
    "config.json": CONFIG,
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": LARGE,
    "nested/part.safetensors": safetensors({"v": 700_000}, seed=1),
    "empty.txt": b"",
    "README.md": b"not asked for",
}
WANTED = ("*.json", "*.safetensors", "*.txt")


@pytest.fixture
def served(hub: HubServer, hub_home: Path) -> HubServer:
    hub.repos.add("org/name", FILES)
    return hub


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, so that what fails in the end fails soon."""
    policy = Policy(base=0.01, attempts=4, read=1.0, connect=1.0, longest_retry_after=2.0)
    original = Access.of.__func__  # type: ignore[attr-defined]

    def hurried(cls: type[Access], **options: Any) -> Access:
        import attrs

        return attrs.evolve(original(cls, **options), policy=policy)

    monkeypatch.setattr(access_module.Access, "of", classmethod(hurried))


def _fetch(server: HubServer, **options: Any) -> Path:
    return public.fetch("org/name", files=options.pop("files", WANTED), endpoint=server.endpoint, **options)


def _partials(home: Path) -> list[Path]:
    return list(home.rglob(f"*{PARTIAL}"))


def _ready(_home: Path) -> bool:
    try:
        return public.verify("org/name").ok
    except ModelNotFoundError:
        return False


# -- what arrives ---------------------------------------------------------------------------------


def test_only_the_files_that_were_asked_for_arrive_and_all_of_them_are_right(
    served: HubServer, hub_home: Path
) -> None:
    folder = _fetch(served)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {name: content for name, content in FILES.items() if name != "README.md"}
    assert not served.log.entries("README")
    assert served.log.bytes() == sum(len(content) for content in found.values())
    assert not _partials(hub_home)


def test_events_tell_the_plan_and_every_byte_once_and_end_with_ready(
    served: HubServer, hub_home: Path
) -> None:
    events: list[public.HubEvent] = []
    folder = _fetch(served, report=events.append)
    total = sum(len(content) for name, content in FILES.items() if name != "README.md")
    (planned,) = [event for event in events if isinstance(event, public.Planned)]
    assert (planned.files, planned.total) == (5, total)
    done = [event.done for event in events if isinstance(event, public.Bytes)]
    assert all(later > earlier for earlier, later in itertools.pairwise(done))
    assert max(later - earlier for earlier, later in itertools.pairwise(done)) <= 1 << 20
    assert done[-1] == total
    assert events[-1] == public.Ready(repo="org/name", path=folder)


def test_a_ready_model_is_not_fetched_again_and_a_second_pattern_fetches_only_the_rest(
    served: HubServer, hub_home: Path
) -> None:
    _fetch(served)
    served.log.clear()
    _fetch(served)
    assert [entry.path.partition("?")[0] for entry in served.log.entries()] == [
        "/api/models/org/name/revision/main"
    ]
    _fetch(served, files=("*",))
    assert [entry.bytes for entry in served.log.entries("/resolve/")] == [len(FILES["README.md"])]
    assert _ready(hub_home)


def test_the_plan_counts_what_is_there_already(served: HubServer, hub_home: Path) -> None:
    card = public.resolve("org/name", endpoint=served.endpoint)
    fetch(card, ["nested/*"], endpoint=served.endpoint)
    plan = public.plan("org/name", files=WANTED, endpoint=served.endpoint)
    have = {file.path: file.have for file in plan.files}
    assert have["nested/part.safetensors"] == len(FILES["nested/part.safetensors"])
    assert 0 < have["model.safetensors"] < len(LARGE)  # its header
    assert plan.need == len(LARGE) - have["model.safetensors"]
    assert plan.fits


def test_by_default_the_usual_files_of_a_model_are_fetched(served: HubServer, hub_home: Path) -> None:
    folder = public.fetch("org/name", endpoint=served.endpoint)
    assert not (folder / "README.md").exists()
    assert (folder / "empty.txt").exists()
    served.repos.add("org/ggufs", {"a.gguf": gguf(64), "b.gguf": gguf(128)})
    with pytest.raises(ModelNotFoundError, match="2 GGUF files"):
        public.fetch("org/ggufs", endpoint=served.endpoint)
    assert public.fetch("org/ggufs", files=["b.gguf"], endpoint=served.endpoint).is_dir()


# -- pickles --------------------------------------------------------------------------------------


def test_a_pickle_beside_the_safetensors_is_never_fetched(served: HubServer, hub_home: Path) -> None:
    served.repos.add("org/name", {**FILES, "pytorch_model.bin": b"\x80\x04", "opt.pt": b"\x80\x04"})
    folder = _fetch(served, files=("*",))
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
    assert not served.log.entries(r"\.bin|\.pt")


def test_weights_that_exist_as_pickles_only_are_a_typed_error(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", {"config.json": CONFIG, "pytorch_model.bin": b"\x80\x04"})
    for patterns in (("*",), ("*.json", "*.safetensors"), ("*.bin",)):
        with pytest.raises(IncompatibleWeightsError, match="pickles"):
            _fetch(hub, files=patterns)
    assert not hub.log.entries("pytorch")


def test_pickles_are_fetched_for_whoever_asks_for_them_by_name(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", {"config.json": CONFIG, "pytorch_model.bin": b"\x80\x04", "opt.pt": b"x"})
    folder = public.fetch("org/name", files=["*.json", "*.bin"], pickles=True, endpoint=hub.endpoint)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin"]
    with pytest.raises(IncompatibleWeightsError, match="--from-bin"):
        public.fetch("org/name", endpoint=hub.endpoint)


# -- interruption ---------------------------------------------------------------------------------


def test_a_cancel_returns_within_a_second_and_the_next_call_goes_on(
    served: HubServer, hub_home: Path
) -> None:
    served.faults.add("slow", "model.safetensors", rate=1 << 20, times=None)
    given_up = threading.Event()

    def report(event: public.HubEvent) -> None:
        if isinstance(event, public.Bytes) and event.done > 2_000_000:
            given_up.set()

    with pytest.raises(CancelledError):
        _fetch(served, report=report, cancelled=given_up.is_set)
    assert not _ready(hub_home)
    served.faults.clear()
    events: list[public.HubEvent] = []
    _fetch(served, report=events.append)
    resumed = [event for event in events if isinstance(event, public.Resumed)]
    assert any(event.at > 500_000 for event in resumed)
    total = sum(len(content) for name, content in FILES.items() if name != "README.md")
    assert served.log.bytes() <= total + (1 << 20)
    assert _ready(hub_home)


def test_a_cancel_returns_within_a_second_while_the_hub_is_silent(served: HubServer, hub_home: Path) -> None:
    card = public.resolve("org/name", endpoint=served.endpoint)
    served.faults.add("stall", "model.safetensors", after=100_000, times=None)
    start = time.monotonic()
    with pytest.raises(CancelledError):
        fetch(card, WANTED, endpoint=served.endpoint, cancelled=lambda: time.monotonic() > start + 0.5)
    assert time.monotonic() - start < 1.5
    before = threading.active_count()
    time.sleep(0.3)
    assert not [t for t in threading.enumerate() if t.name.startswith("mlxengine-hub")], before


def test_an_exception_of_the_listener_ends_the_download_and_is_not_swallowed(
    served: HubServer, hub_home: Path
) -> None:
    def report(event: public.HubEvent) -> None:
        if isinstance(event, public.Bytes) and event.done > 1_000_000:
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        _fetch(served, report=report)
    assert not _ready(hub_home)
    _fetch(served)
    assert _ready(hub_home)


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ignore_range", "short_length", "oversize", "truncate", "reset"])
def test_an_answer_that_does_not_keep_to_the_range_still_ends_in_the_right_bytes(
    served: HubServer, hub_home: Path, kind: str
) -> None:
    served.faults.add(kind, "model.safetensors", times=4, after=700_000, cut=1000, extra=1000)
    folder = _fetch(served)
    assert (folder / "model.safetensors").read_bytes() == LARGE


@pytest.mark.usefixtures("hasty")
def test_a_range_that_is_not_the_one_asked_for_is_never_written(served: HubServer, hub_home: Path) -> None:
    served.faults.add("wrong_range", "model.safetensors", times=None)
    with pytest.raises(DownloadError, match="bytes from"):
        _fetch(served)
    assert not _ready(hub_home)
    served.faults.clear()
    assert (_fetch(served) / "model.safetensors").read_bytes() == LARGE


def test_a_bit_flipped_on_the_wire_is_found_and_the_file_is_fetched_again(
    served: HubServer, hub_home: Path
) -> None:
    served.faults.add("corrupt", "model.safetensors", offset=-1, skip=1)
    events: list[public.HubEvent] = []
    folder = _fetch(served, report=events.append)
    assert [event.file for event in events if isinstance(event, public.Corrupt)] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_content_that_stays_wrong_is_a_typed_error_and_never_ready(
    served: HubServer, hub_home: Path, name: str
) -> None:
    served.faults.add("corrupt", name, offset=-1, times=None)
    with pytest.raises(CorruptFileError, match=name):
        _fetch(served)
    assert not _ready(hub_home)
    assert not list(hub_home.rglob(f"blobs/{served.repos['org/name'].head.files[name].etag}"))


def test_an_answer_for_a_file_of_another_size_is_not_taken_for_the_rest(
    served: HubServer, hub_home: Path
) -> None:
    card = public.resolve("org/name", endpoint=served.endpoint)
    value = f"bytes {1 << 17}-{len(LARGE) - 1}/77"
    served.faults.add("set_header", "model.safetensors", header="Content-Range", value=value)
    events: list[public.HubEvent] = []
    fetch(card, WANTED, endpoint=served.endpoint, report=events.append)
    assert [event.reason for event in events if isinstance(event, public.Retry)]
    assert not [event for event in events if isinstance(event, public.Corrupt)]


@pytest.mark.usefixtures("hasty")
def test_a_hub_that_stays_broken_ends_in_a_download_error_that_may_be_tried_again(
    served: HubServer, hub_home: Path
) -> None:
    card = public.resolve("org/name", endpoint=served.endpoint)
    served.faults.add("status", "/resolve/", status=503, times=None)
    events: list[public.HubEvent] = []
    with pytest.raises(DownloadError, match="503") as caught:
        fetch(card, WANTED, endpoint=served.endpoint, report=events.append)
    assert caught.value.recoverable
    retries = [event for event in events if isinstance(event, public.Retry)]
    assert {event.reason for event in retries} == {"status 503"}
    assert isinstance(events[-1], public.Failed)


@pytest.mark.usefixtures("hasty")
def test_a_hub_that_asks_for_a_longer_wait_than_ours_is_a_rate_limit_error(
    served: HubServer, hub_home: Path
) -> None:
    served.faults.add("status", "/api/", status=429, headers={"Retry-After": "600"}, times=None)
    with pytest.raises(RateLimitedError, match="600"):
        _fetch(served)


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    served: HubServer, hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    card = public.resolve("org/name", endpoint=served.endpoint)
    served.log.clear()
    usage = shutil.disk_usage(hub_home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(total=100_000_000, free=2_000_000))
    with pytest.raises(InsufficientDiskError, match="free"):
        fetch(card, WANTED, endpoint=served.endpoint)
    assert not served.log.entries()


def test_verify_takes_only_what_it_knows(served: HubServer, hub_home: Path) -> None:
    with pytest.raises(InvalidParameterError, match="verify"):
        _fetch(served, verify="deeply")


# -- damage on the disk ---------------------------------------------------------------------------


def _flip(path: Path, *, keep_time: bool) -> None:
    found = path.stat()
    with path.open("r+b") as handle:
        handle.seek(1000)
        byte = handle.read(1)
        handle.seek(1000)
        handle.write(bytes([byte[0] ^ 1]))
    if keep_time:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("change", ["deleted", "truncated", "edited", "unlinked"])
def test_a_file_that_changed_since_is_found_and_only_it_is_fetched_again(
    served: HubServer, hub_home: Path, change: str
) -> None:
    pointer = _fetch(served) / "nested/part.safetensors"
    blob = pointer.resolve()
    if change == "deleted":
        blob.unlink()
    elif change == "truncated":
        os.truncate(blob, 1000)
    elif change == "edited":
        _flip(blob, keep_time=False)
    else:
        pointer.unlink()
    assert not _ready(hub_home)
    served.log.clear()
    _fetch(served)
    expected = 0 if change == "unlinked" else len(FILES["nested/part.safetensors"])
    assert served.log.bytes() == expected
    assert _ready(hub_home)
    assert pointer.read_bytes() == FILES["nested/part.safetensors"]


def test_a_touched_file_is_hashed_again_and_kept(served: HubServer, hub_home: Path) -> None:
    blob = (_fetch(served) / "model.safetensors").resolve()
    os.utime(blob)
    assert not _ready(hub_home)
    served.log.clear()
    _fetch(served, offline=True)
    assert _ready(hub_home)
    assert not served.log.entries()


def test_rot_that_keeps_size_and_time_is_found_by_a_deep_fetch(served: HubServer, hub_home: Path) -> None:
    pointer = _fetch(served) / "model.safetensors"
    _flip(pointer.resolve(), keep_time=True)
    _fetch(served)
    assert pointer.read_bytes() != LARGE
    with pytest.raises(CorruptFileError, match=r"model\.safetensors.*repair"):
        _fetch(served, offline=True, verify="deep")
    _fetch(served, verify="deep")
    assert pointer.read_bytes() == LARGE


# -- a common cache -------------------------------------------------------------------------------


def test_what_the_stock_client_fetched_is_hashed_and_adopted_without_a_byte(
    served: HubServer, hub_home: Path
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("org/name", endpoint=served.endpoint)
    served.log.clear()
    events: list[public.HubEvent] = []
    _fetch(served, report=events.append)
    assert served.log.bytes() == 0
    assert len([event for event in events if isinstance(event, public.Verifying)]) == 5
    assert _ready(hub_home)


def test_a_bad_blob_of_the_stock_client_is_not_adopted(served: HubServer, hub_home: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download("org/name", endpoint=served.endpoint))
    _flip((folder / "model.safetensors").resolve(), keep_time=False)
    served.log.clear()
    assert (_fetch(served) / "model.safetensors").read_bytes() == LARGE
    assert served.log.bytes() == len(LARGE)


def test_the_stock_client_finds_what_we_fetched_and_fetches_nothing(
    served: HubServer, hub_home: Path
) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

    folder = _fetch(served, files=("*",))
    served.log.clear()
    assert Path(snapshot_download("org/name", endpoint=served.endpoint)) == folder
    assert served.log.bytes() == 0
    assert try_to_load_from_cache("org/name", "config.json") == str(folder / "config.json")
    assert Path(snapshot_download("org/name", local_files_only=True)) == folder
    report = scan_cache_dir()
    assert not report.warnings
    (repo,) = report.repos
    assert repo.nb_files == len(FILES)


def test_two_commits_share_a_blob_that_is_fetched_and_hashed_once(served: HubServer, hub_home: Path) -> None:
    _fetch(served)
    served.repos["org/name"].commit({"config.json": b'{"model_type": "newer"}'})
    served.log.clear()
    events: list[public.HubEvent] = []
    _fetch(served, report=events.append)
    assert served.log.bytes() == len(b'{"model_type": "newer"}')
    assert "model.safetensors" not in {e.file for e in events if isinstance(e, public.Verifying)}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which a test may make read-only."""
    with own_disk(tmp_path / "mounted", 64) as folder:
        yield folder


@pytest.mark.parametrize("offline", [False, True])
def test_a_complete_cache_on_a_read_only_disk_is_hashed_and_used(
    served: HubServer, mounted: Path, offline: bool
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("org/name", endpoint=served.endpoint, cache_dir=mounted)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    served.log.clear()
    folder = _fetch(served, cache_dir=mounted, offline=offline)
    assert (folder / "model.safetensors").read_bytes() == LARGE
    assert served.log.bytes() == 0


def test_a_complete_cache_on_a_read_only_disk_is_used_though_its_branch_is_not_noted(
    served: HubServer, mounted: Path
) -> None:
    _fetch(served, cache_dir=mounted)
    shutil.rmtree(mounted / "models--org--name" / "refs")
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    assert (_fetch(served, cache_dir=mounted) / "model.safetensors").read_bytes() == LARGE


def test_a_cache_that_cannot_be_written_is_a_typed_error(served: HubServer, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        _fetch(served, cache_dir=mounted)
    assert not caught.value.recoverable
    assert isinstance(caught.value.__cause__, OSError)


def test_a_large_file_goes_through_the_stock_client_and_is_hashed_by_us(
    served: HubServer, hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attrs

    original = Access.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Access,
        "of",
        classmethod(
            lambda cls, **options: attrs.evolve(original(cls, **options), policy=Policy(xet_above=1_000_000))
        ),
    )
    assert (_fetch(served) / "model.safetensors").read_bytes() == LARGE
    agents = {entry.user_agent.partition("/")[0] for entry in served.log.entries("model.safetensors")}
    assert agents == {"mlxengine"}
    assert served.log.entries("model.safetensors", method="HEAD")  # the stock client's way
    _flip((hub_home / "hub").glob("*/snapshots/*/model.safetensors").__next__().resolve(), keep_time=False)
    served.faults.add("corrupt", "model.safetensors", offset=-1, times=None)
    with pytest.raises(CorruptFileError):
        _fetch(served)


# -- tokens ---------------------------------------------------------------------------------------

CANARY = "hf_canary_0123456789"


def test_a_token_reaches_the_hub_alone_and_is_written_nowhere(
    hub: HubServer, hub_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.cdn_mode = True
    hub.users[CANARY] = User("me")
    hub.repos.add("org/name", FILES, gated="auto")
    hub.faults.add("status", "config.json", status=503)
    events: list[public.HubEvent] = []
    _fetch(hub, token=CANARY, report=events.append)
    assert {entry.authorization for entry in hub.log.entries(server="hub")} == {f"Bearer {CANARY}"}
    cdn = hub.log.entries(server="cdn")
    assert cdn
    assert {entry.authorization for entry in cdn} == {None}
    errors = io.StringIO()
    for token in (CANARY + "_wrong", CANARY):
        hub.repos.add("org/other", FILES, gated="manual")
        hub.users[CANARY] = User("me", frozenset())
        try:
            public.fetch("org/other", endpoint=hub.endpoint, token=token)
        except Exception as error:
            import traceback

            traceback.print_exception(error, file=errors)
            errors.write(repr(error) + repr(error.__cause__))
    assert "HubAuthError" in errors.getvalue()
    assert "GatedModelError" in errors.getvalue()
    kept = b"".join(path.read_bytes() for path in hub_home.rglob("*") if path.is_file())
    shown = repr(Access.of(token=CANARY)) + caplog.text + errors.getvalue() + repr(events)
    assert CANARY not in shown
    assert CANARY.encode() not in kept


def test_an_expired_signed_address_is_asked_for_again(hub: HubServer, hub_home: Path) -> None:
    hub.cdn_mode = True
    hub.repos.add("org/name", FILES)
    hub.faults.add("reset", "/cdn/", after=2_000_000, skip=1)

    def report(event: public.HubEvent) -> None:
        if isinstance(event, public.Retry):
            hub.expire()

    folder = _fetch(hub, report=report)
    assert (folder / "model.safetensors").read_bytes() == LARGE


# -- the marker ------------------------------------------------------------------------------------


def test_the_marker_says_what_was_verified(served: HubServer, hub_home: Path) -> None:
    folder = _fetch(served)
    (marker,) = hub_home.rglob("*.ready.json")
    data = json.loads(marker.read_text())
    assert (data["format"], data["repo"], data["commit"]) == (1, "org/name", folder.name)
    by_path = {entry["path"]: entry for entry in data["files"]}
    found = (folder / "model.safetensors").stat()
    assert by_path["model.safetensors"]["size"] == found.st_size
    assert by_path["model.safetensors"]["mtime_ns"] == found.st_mtime_ns
    marker.write_text(marker.read_text()[:-20])
    assert not _ready(hub_home)


# -- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cdn", [False, True])
def test_connections_are_used_again(
    hub: HubServer, hub_home: Path, monkeypatch: pytest.MonkeyPatch, cdn: bool
) -> None:
    from tests.hub.server import _Listener

    opened: list[object] = []
    original = _Listener.process_request

    def counted(self: _Listener, request: Any, address: object) -> None:
        opened.append(address)
        original(self, request, address)

    monkeypatch.setattr(_Listener, "process_request", counted)
    hub.cdn_mode = cdn
    many = {f"{number}.json": b"{}" + b" " * number for number in range(30)}
    hub.repos.add("org/name", {**FILES, **many})
    _fetch(hub)
    assert len(hub.log.entries()) > 35
    assert len(opened) <= 2 * Policy().workers + 2
