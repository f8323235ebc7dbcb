"""A card tells what a model is, from the hub, a folder or a GGUF file, and hostile ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlxengine import ModelConfiguration, Source
from mlxengine import hub as public
from mlxengine._hub import fetch, resolve
from mlxengine.errors import (
    CorruptFileError,
    GatedModelError,
    HubAuthError,
    HubUnavailableError,
    IncompatibleWeightsError,
    InvalidModelRefError,
    MLXEngineError,
    ModelNotFoundError,
    OfflineError,
)

from tests.hub.server import HubServer, User
from tests.hub.tiny import gguf, safetensors

CONFIG = b'{"model_type": "llama"}'
FILES: dict[str, Any] = {
    "config.json": CONFIG,
    "tokenizer.json": b'{"version": "1.0"}',
    "1_Pooling/config.json": b'{"word_embedding_dimension": 3}',
    "model.safetensors": safetensors({"w": 300_000}),
    "README.md": b"hello",
}
META = {"tags": ["mlx", "license:mit"], "pipeline_tag": "text-generation", "library_name": "mlx"}


def _resolve(server: HubServer, name: str = "org/name", **options: Any) -> Any:
    return resolve(ModelConfiguration(id=name), endpoint=server.endpoint, **options)


def test_a_card_of_the_hub_has_documents_tensors_hashes_and_what_the_hub_says(
    hub: HubServer, hub_home: Path
) -> None:
    repo = hub.repos.add("org/name", FILES, meta=META)
    card = _resolve(hub)
    assert (card.source, card.commit, card.id) == (Source.HUB, repo.head.sha, "org/name")
    assert card.architecture == "llama"
    assert card.documents["1_Pooling/config.json"]["word_embedding_dimension"] == 3
    assert [(t.name, t.nbytes) for t in card.tensors] == [("w", 300_000)]
    assert {f.path: f.hash for f in card.files} == {
        path: f"sha256:{file.sha256}" if file.lfs else f"git:{file.oid}"
        for path, file in repo.head.files.items()
    }
    assert (card.license, card.pipeline_tag, card.library_name) == ("mit", "text-generation", "mlx")


def test_resolving_reads_headers_not_weights_and_the_download_goes_on_from_there(
    hub: HubServer, hub_home: Path
) -> None:
    content = safetensors({"w": 3_000_000})
    hub.repos.add("org/name", {"config.json": CONFIG, "model.safetensors": content})
    card = _resolve(hub)
    assert hub.log.bytes("safetensors") < 200_000
    fetch(card, ["*"], endpoint=hub.endpoint)
    assert hub.log.bytes("safetensors") == len(content)


def test_all_files_are_pinned_to_one_commit_although_the_branch_moves_on(
    hub: HubServer, hub_home: Path
) -> None:
    repo = hub.repos.add("org/name", FILES)
    card = _resolve(hub)
    repo.commit({"model.safetensors": safetensors({"w": 10}, seed=2)})
    folder = fetch(card, ["*.safetensors"], endpoint=hub.endpoint)
    assert folder.name == card.commit
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert _resolve(hub).commit == repo.head.sha != card.commit


def test_a_revision_may_be_a_branch_or_a_commit_id(hub: HubServer, hub_home: Path) -> None:
    repo = hub.repos.add("org/name", FILES)
    first = repo.head.sha
    repo.commit({"config.json": b'{"model_type": "other"}'}, ref="main")
    repo.refs["v1"] = first
    assert _resolve(hub, "org/name@v1").commit == first
    assert _resolve(hub, f"org/name@{first}").architecture == "llama"


def test_only_the_shards_of_an_index_are_read_and_a_missing_one_is_named(
    hub: HubServer, hub_home: Path
) -> None:
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    files = {
        "config.json": CONFIG,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": safetensors({"w": 10}),
        "model-2.safetensors": safetensors({"v": 20}),
        "consolidated.safetensors": safetensors({"w": 10, "v": 20}),
    }
    hub.repos.add("org/name", files)
    assert sorted(t.name for t in _resolve(hub).tensors) == ["v", "w"]
    del files["model-2.safetensors"]
    hub.repos.add("org/less", files)
    with pytest.raises(IncompatibleWeightsError, match=r"model-2\.safetensors"):
        _resolve(hub, "org/less")


def test_a_gguf_repository_has_its_metadata_read_by_range(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/gguf", {"model.gguf": gguf(1_000_000)})
    card = _resolve(hub, "org/gguf")
    assert card.architecture == "llama"
    assert card.weight_bytes == 4_000_000
    assert hub.log.bytes() < 1 << 20


def test_of_several_gguf_files_only_the_metadata_is_taken(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/gguf", {"a-Q8.gguf": gguf(1000), "a-Q4.gguf": gguf(100)})
    card = _resolve(hub, "org/gguf")
    assert card.gguf["llama.block_count"] == 3
    assert card.tensors == ()


# -- local sources --------------------------------------------------------------------------------


def _folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


def test_a_folder_is_read_in_the_same_way_and_changes_with_its_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path, FILES)
    card = public.resolve(folder)
    assert (card.source, card.path, card.architecture) == (Source.FOLDER, folder, "llama")
    assert [t.name for t in card.tensors] == ["w"]
    assert public.fetch(card) == folder
    (folder / "model.safetensors").write_bytes(safetensors({"w": 7}))
    assert public.resolve(folder).commit != card.commit


def test_a_snapshot_of_the_cache_works_as_a_folder(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", FILES)
    folder = public.fetch("org/name", endpoint=hub.endpoint)
    assert public.resolve(folder).architecture == "llama"


def test_a_gguf_file_is_a_source_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf())
    card = public.resolve(tmp_path / "a.gguf")
    assert (card.source, card.architecture, card.weight_bytes) == (Source.GGUF, "llama", 256)
    assert fetch(card, ["*.gguf"]) == tmp_path / "a.gguf"


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"config.json": b"<html>not found</html>"}, IncompatibleWeightsError),
        ({"config.json": b" " * 10_000_000}, IncompatibleWeightsError),
        ({"config.json": b"[" * 50_000}, IncompatibleWeightsError),
        ({"config.json": CONFIG, "m.safetensors": b"\xff" * 100}, CorruptFileError),
        ({"config.json": CONFIG, "m.safetensors": safetensors({"w": 9})[:-1]}, CorruptFileError),
        ({"m.gguf": b"GGUF" + b"\xff" * 100}, CorruptFileError),
        ({}, ModelNotFoundError),
    ],
)
def test_a_damaged_folder_and_a_damaged_repository_are_the_same_typed_error(
    hub: HubServer, hub_home: Path, tmp_path: Path, files: dict[str, bytes], error: type[MLXEngineError]
) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(error):
        resolve(ModelConfiguration(id=str(_folder(tmp_path, files))))
    hub.repos.add("org/bad", files)
    with pytest.raises(error):
        _resolve(hub, "org/bad")


def test_what_is_not_there_or_not_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(ModelConfiguration(id=str(tmp_path / "none")))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InvalidModelRefError):
        resolve(ModelConfiguration(id=str(tmp_path / "a.txt")))
    with pytest.raises(InvalidModelRefError):
        resolve(ModelConfiguration(id="auto:llm"))


def test_a_device_or_pipe_in_a_folder_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"config.json": CONFIG})
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CorruptFileError, match="regular"):
        public.resolve(folder)


# -- what the hub refuses -------------------------------------------------------------------------


def test_each_refusal_has_its_own_error(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", FILES)
    hub.repos.add("org/gated", FILES, gated="manual")
    hub.users["good"] = User("me")
    with pytest.raises(ModelNotFoundError):
        _resolve(hub, "org/none")
    with pytest.raises(ModelNotFoundError, match="revision"):
        _resolve(hub, "org/name@v9")
    with pytest.raises(GatedModelError) as caught:
        _resolve(hub, "org/gated")
    assert f"{hub.endpoint}/org/gated" in str(caught.value)
    with pytest.raises(HubAuthError):
        _resolve(hub, "org/gated", token="bad")
    assert _resolve(hub, "org/gated", token="good").architecture == "llama"


def test_a_hub_that_is_down_is_tried_a_few_times_and_named(hub: HubServer, hub_home: Path) -> None:
    hub.stop()
    start = time.monotonic()
    with pytest.raises(HubUnavailableError, match="could not be asked") as caught:
        _resolve(hub)
    assert time.monotonic() - start < 5
    assert caught.value.recoverable
    assert caught.value.__cause__ is not None


def test_an_endpoint_that_is_no_hub_says_so(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", FILES)
    with pytest.raises(HubUnavailableError):
        resolve(ModelConfiguration(id="org/name"), endpoint=f"{hub.endpoint}/nothing")


# -- without a network ----------------------------------------------------------------------------


def test_offline_the_card_is_the_same_and_nothing_is_asked(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", FILES, meta=META)
    public.fetch("org/name", endpoint=hub.endpoint)
    online = _resolve(hub)
    hub.log.clear()
    assert _resolve(hub, offline=True) == online
    assert not hub.log.entries()


def test_offline_a_model_that_was_never_fetched_says_what_is_missing(hub: HubServer, hub_home: Path) -> None:
    with pytest.raises(OfflineError, match="all of its files"):
        _resolve(hub, offline=True)
    hub.repos.add("org/name", FILES)
    card = _resolve(hub)
    with pytest.raises(OfflineError, match=r"model\.safetensors"):
        fetch(card, ["*.safetensors"], endpoint=hub.endpoint, offline=True)


@pytest.mark.parametrize("fault", ["down", "503", "silent"])
def test_a_ready_model_is_used_at_once_when_the_hub_does_not_answer(
    hub: HubServer, hub_home: Path, fault: str
) -> None:
    hub.repos.add("org/name", FILES)
    public.fetch("org/name", endpoint=hub.endpoint)
    if fault == "down":
        hub.stop()
    elif fault == "503":
        hub.faults.add("status", "/api/", times=None)
    else:
        hub.faults.add("delay", "/api/", seconds=30, times=None)
    start = time.monotonic()
    assert _resolve(hub).architecture == "llama"
    assert time.monotonic() - start < 1.2


def test_a_cache_that_the_stock_client_filled_is_resolved_offline(hub: HubServer, hub_home: Path) -> None:
    from huggingface_hub import snapshot_download

    hub.repos.add("org/name", FILES)
    snapshot_download("org/name", endpoint=hub.endpoint)
    hub.log.clear()
    card = _resolve(hub, offline=True)
    assert (card.architecture, len(card.tensors)) == ("llama", 1)
    folder = public.fetch(card, endpoint=hub.endpoint, offline=True)
    assert public.verify("org/name").ok
    assert not hub.log.entries()
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_cache_that_the_stock_client_filled_is_used_when_the_hub_is_down(
    hub: HubServer, hub_home: Path
) -> None:
    from huggingface_hub import snapshot_download

    hub.repos.add("org/name", FILES)
    snapshot_download("org/name", endpoint=hub.endpoint)
    hub.stop()
    folder = public.fetch("org/name", endpoint=hub.endpoint)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert public.verify("org/name", deep=True).ok


def test_what_the_stock_client_left_half_done_is_not_taken_for_complete(
    hub: HubServer, hub_home: Path
) -> None:
    from huggingface_hub import snapshot_download

    hub.repos.add("org/name", FILES)
    snapshot_download("org/name", endpoint=hub.endpoint, allow_patterns=["*.json"])
    with pytest.raises(OfflineError, match=r"model\.safetensors"):
        _resolve(hub, offline=True)
    hub.stop()
    with pytest.raises(HubUnavailableError):
        _resolve(hub)


# -- hostile repositories -------------------------------------------------------------------------


def _all_paths(root: Path) -> set[Path]:
    return set(root.rglob("*"))


@pytest.mark.parametrize(
    "name",
    ["../../evil.json", "/tmp/evil.json", "a\\..\\b.json", "aux.json", "x" * 300 + ".json", "a/../b.json"],
)
def test_a_hostile_name_is_a_typed_error_and_nothing_outside_the_cache_is_touched(
    hub: HubServer, hub_home: Path, tmp_path: Path, name: str
) -> None:
    hub.repos.add("org/evil", {**FILES, name: b"{}"})
    before = _all_paths(tmp_path)
    with pytest.raises(CorruptFileError, match="refused"):
        _resolve(hub, "org/evil")
    assert _all_paths(tmp_path) == before
    assert not hub.log.entries("/resolve/")


def test_a_header_that_lies_on_the_hub_is_not_taken_for_damage_of_the_wire(
    hub: HubServer, hub_home: Path
) -> None:
    hub.repos.add("org/lie", {"config.json": CONFIG, "m.safetensors": b"\xff" * 1000})
    with pytest.raises(CorruptFileError, match="valid safetensors"):
        _resolve(hub, "org/lie")


def test_a_flipped_bit_in_a_header_on_the_wire_is_read_again(hub: HubServer, hub_home: Path) -> None:
    hub.repos.add("org/name", FILES)
    hub.faults.add("corrupt", "safetensors", offset=7, mask=0x80)
    assert [t.name for t in _resolve(hub).tensors] == ["w"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"[]", HubUnavailableError),
        (b'{"sha": "../../x"}', HubUnavailableError),
        (b'{"sha": "%s", "siblings": 7}' % (b"a" * 40), CorruptFileError),
        (b'{"sha": "%s", "siblings": [{"rfilename": "a", "size": -1}]}' % (b"a" * 40), CorruptFileError),
        (
            b'{"sha": "%s", "siblings": [{"rfilename": "a", "size": 1, "blobId": "../x"}]}' % (b"a" * 40),
            CorruptFileError,
        ),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_typed_error(
    hub_home: Path, answer: bytes, error: type[MLXEngineError], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxengine._hub import resolve as module

    monkeypatch.setattr(
        sys.modules["mlxengine._hub.resolve"], "get_json", lambda *_a, **_k: json.loads(answer)
    )
    with pytest.raises(error):
        module(ModelConfiguration(id="org/name"), endpoint="http://127.0.0.1:1")


def test_huggingface_hub_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mlxengine, mlxengine.hub, mlxengine._hub;"
        "assert not {'huggingface_hub', 'httpx2', 'mlx'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
