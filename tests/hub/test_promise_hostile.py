"""A repository that means harm ends in a typed error, and nothing outside the cache is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlxengine import hub as client
from mlxengine.errors import CorruptFileError, IncompatibleWeightsError, MLXEngineError

from tests.hub import hostile
from tests.hub.content import same
from tests.hub.server import HubServer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the working folder and the cache, and is compared before and after."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def _outside(home: Path) -> set[str]:
    found = {str(path) for path in home.rglob("*") if not path.is_relative_to(home / "cache")}
    return found | {str(path) for path in Path("/tmp").glob("*escaped*")}


def _fetch(hub: HubServer, home: Path, **options: list[str]) -> Path:
    return client.fetch("evil/model", endpoint=hub.endpoint, cache_dir=home / "cache", **options)


@pytest.mark.parametrize("name", hostile.NAMES)
def test_a_hostile_name_is_refused_before_anything_is_fetched(hub: HubServer, home: Path, name: str) -> None:
    hub.repos.add("evil/model", hostile.named(hostile.NAMES[name]))
    before = _outside(home)
    with pytest.raises(CorruptFileError) as caught:
        _fetch(hub, home, files=["*"])
    assert caught.value.hint
    assert not caught.value.recoverable
    assert str(caught.value).isprintable()
    assert hub.log.bytes() == 0
    assert _outside(home) == before
    assert not any(model.ready for model in client.list_local(cache_dir=home / "cache"))


@pytest.mark.parametrize("name", hostile.CONTENT)
def test_hostile_content_is_a_typed_error_before_the_weights_are_fetched(
    hub: HubServer, home: Path, name: str
) -> None:
    hub.repos.add("evil/model", hostile.broken(hostile.CONTENT[name]))
    before = _outside(home)
    with pytest.raises((CorruptFileError, IncompatibleWeightsError)) as caught:
        client.resolve("evil/model", endpoint=hub.endpoint, cache_dir=home / "cache")
    assert caught.value.hint
    assert len(str(caught.value)) < 1000
    assert hub.log.bytes() < 1 << 20
    assert _outside(home) == before


@pytest.mark.parametrize("name", [name for name in hostile.CONTENT if "10 MB" not in name])
def test_hostile_content_in_a_folder_is_the_same_typed_error(home: Path, name: str) -> None:
    folder = home / "folder"
    folder.mkdir()
    for path, content in hostile.broken(hostile.CONTENT[name]).items():
        (folder / path).write_bytes(content)
    with pytest.raises((CorruptFileError, IncompatibleWeightsError)) as caught:
        client.resolve(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["nowhere", "itself", "a device", "a pipe"])
def test_what_is_no_file_in_a_folder_is_a_typed_error_and_is_not_read(home: Path, kind: str) -> None:
    folder = home / "folder"
    folder.mkdir()
    for path, content in hostile.broken({}).items():
        (folder / path).write_bytes(content)
    odd = folder / "other.json"
    if kind == "a pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"nowhere": "/nowhere/at/all", "itself": "other.json", "a device": "/dev/zero"}[kind])
    with pytest.raises(CorruptFileError, match=r"other\.json"):
        client.resolve(folder)


def test_a_planted_symlink_in_the_cache_is_not_written_through(hub: HubServer, home: Path) -> None:
    files = hostile.broken({})
    hub.repos.add("evil/model", files)
    victim = home / "victim"
    victim.write_text("untouched")
    file = hub.repos["evil/model"].head.files["model.safetensors"]
    blobs = home / "cache" / "models--evil--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / file.sha256).symlink_to(victim)
    (blobs / f"{file.sha256}.mlxengine.incomplete").symlink_to(victim)
    try:
        assert same(_fetch(hub, home, files=["*"]), files)
    except MLXEngineError:
        assert not any(model.ready for model in client.list_local(cache_dir=home / "cache"))
    assert victim.read_text() == "untouched"


def test_a_pickle_beside_safetensors_is_never_fetched(hub: HubServer, home: Path) -> None:
    hub.repos.add(
        "evil/model", hostile.broken({"pytorch_model.bin": hostile.bomb(), "x.pkl": hostile.bomb()})
    )
    path = _fetch(hub, home, files=["*"])
    assert {item.name for item in path.iterdir()} == {"config.json", "model.safetensors"}
    assert not hub.log.entries(r"/resolve/.*(bin|pkl)")


def test_a_model_that_is_only_pickles_is_refused(hub: HubServer, home: Path) -> None:
    hub.repos.add("evil/model", {"config.json": hostile.CONFIG, "pytorch_model.bin": hostile.bomb()})
    with pytest.raises(IncompatibleWeightsError, match="pickle"):
        _fetch(hub, home)
    assert not hub.log.entries(r"/resolve/.*bin")
    assert not (home / "work" / "pickle-was-loaded").exists()


def test_a_listing_that_lies_about_a_hash_or_a_size_is_a_typed_error(hub: HubServer, home: Path) -> None:
    files = hostile.broken({})
    hub.repos.add("evil/model", files)
    file = hub.repos["evil/model"].head.files["model.safetensors"]
    right = vars(file).copy()
    for lie in ({"sha256": "0" * 64}, {"sha256": "../../x"}, {"size": -1}, {"size": 1 << 60}, {"size": 100}):
        vars(file).clear()
        vars(file).update(right | lie)
        with pytest.raises(MLXEngineError):
            _fetch(hub, home, files=["*"])
        assert not any(model.ready for model in client.list_local(cache_dir=home / "cache"))


def test_two_files_that_differ_in_case_alone_both_arrive(hub: HubServer, home: Path) -> None:
    files = hostile.broken({"Notes.txt": b"upper", "notes.txt": b"lower"})
    hub.repos.add("evil/model", files)
    assert same(_fetch(hub, home, files=["*"]), files)


def test_a_file_that_is_also_a_folder_is_a_typed_error(hub: HubServer, home: Path) -> None:
    hub.repos.add("evil/model", hostile.broken({"notes": b"a file", "notes/more.txt": b"in a folder"}))
    with pytest.raises(CorruptFileError, match="notes"):
        _fetch(hub, home, files=["*"])
    assert hub.log.bytes() == 0
