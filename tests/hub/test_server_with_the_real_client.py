"""The server is hub enough for the real client: what it downloads, lists, and which errors it raises."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.fixtures import HubModel
from tests.hub.server import HubServer, User

BIG = bytes(range(256)) * 4096 * 3
FILES = {"config.json": b'{"model_type": "llama"}', "deep/er/notes.txt": b"hello", "model.safetensors": BIG}


@pytest.fixture
def api(hub: HubServer, hub_home: Path) -> HfApi:
    hub.repos.add("org/name", FILES, meta={"pipeline_tag": "text-generation", "tags": ["mlx"]})
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def test_a_snapshot_has_every_byte_of_every_file(hub: HubServer, api: HfApi) -> None:
    folder = Path(snapshot_download("org/name", endpoint=hub.endpoint))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert folder.name == hub.repos["org/name"].head.sha
    assert hub.log.bytes() == sum(map(len, FILES.values()))


def test_a_second_snapshot_sends_no_file(hub: HubServer, api: HfApi) -> None:
    snapshot_download("org/name", endpoint=hub.endpoint)
    hub.log.clear()
    snapshot_download("org/name", endpoint=hub.endpoint)
    assert hub.log.bytes() == 0


def test_blobs_are_named_by_their_hash(hub: HubServer, api: HfApi) -> None:
    link = Path(hf_hub_download("org/name", "model.safetensors", endpoint=hub.endpoint))
    assert link.resolve().name == hashlib.sha256(BIG).hexdigest()
    small = Path(hf_hub_download("org/name", "config.json", endpoint=hub.endpoint))
    git = hashlib.sha1(b"blob %d\0" % len(FILES["config.json"]) + FILES["config.json"]).hexdigest()
    assert small.resolve().name == git


def test_large_files_come_from_another_origin_without_the_token(hub: HubServer, api: HfApi) -> None:
    hub.cdn_mode = True
    hub.users["hf_good"] = User("someone")
    folder = Path(snapshot_download("org/name", endpoint=hub.endpoint, token="hf_good"))
    assert (folder / "model.safetensors").read_bytes() == BIG
    sent = hub.log.entries("/cdn/", server="cdn")
    assert sum(entry.bytes for entry in sent) == len(BIG)
    assert all(entry.authorization is None for entry in sent)
    assert all(entry.authorization for entry in hub.log.entries("/resolve/", server="hub"))


def test_small_files_may_be_redirected_within_the_hub(hub: HubServer, api: HfApi) -> None:
    hub.relative_redirects = True
    folder = Path(snapshot_download("org/name", endpoint=hub.endpoint))
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert hub.log.entries("/api/resolve-cache/", method="GET")


def test_ranges_are_exact(hub: HubServer, api: HfApi) -> None:
    url = f"{hub.endpoint}/org/name/resolve/main/model.safetensors"
    for header, start, end in (("bytes=5-9", 5, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None)):
        request = urllib.request.Request(url, headers={"Range": header})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206
            assert answer.read() == BIG[start:end]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={len(BIG)}-"}))


def test_the_stock_client_goes_on_with_a_range_after_a_closed_connection(hub: HubServer, api: HfApi) -> None:
    chunk = constants.DOWNLOAD_CHUNK_SIZE  # the stock client keeps whole chunks only
    data = BIG * 8
    hub.repos.add("org/large", {"model.safetensors": data})
    fault = hub.faults.add("truncate", "/resolve/.*model.safetensors", method="GET", after=chunk + 7)
    path = hf_hub_download("org/large", "model.safetensors", endpoint=hub.endpoint)
    assert Path(path).read_bytes() == data
    assert fault.hits == 1
    ranges = [entry.range for entry in hub.log.entries("model.safetensors", method="GET")]
    assert ranges == [None, f"bytes={chunk}-"]


def test_the_list_is_filtered_and_comes_in_pages(hub: HubServer, api: HfApi) -> None:
    hub.page_size = 4
    for number in range(10):
        meta = {"tags": ["mlx", f"n{number}"], "downloads": number, "pipeline_tag": "text-generation"}
        hub.repos.add(f"many/model-{number}", {"config.json": b"{}"}, meta=meta)
    hub.repos.add("many/other", {"config.json": b"{}"}, meta={"tags": ["gguf"]})
    found = list(api.list_models(author="many", filter=["mlx"], sort="downloads"))
    assert [model.id for model in found] == [f"many/model-{number}" for number in reversed(range(10))]
    assert len(hub.log.entries("/api/models")) == 3
    assert [m.id for m in api.list_models(search="MODEL-7")] == ["many/model-7"]
    assert len(list(api.list_models(author="many", pipeline_tag="text-generation", limit=6))) == 6


def test_one_call_brings_what_a_search_needs(api: HfApi, tiny_vlm: HubModel) -> None:
    expand = ["safetensors", "usedStorage", "gated", "downloads", "likes", "tags", "config", "siblings"]
    (model,) = api.list_models(search="tiny-shapes", expand=[*expand, "pipeline_tag", "lastModified"])
    assert model.safetensors.total == model.safetensors.parameters["F16"] > 4_000_000
    assert model.used_storage > 9_000_000
    assert model.config["model_type"] == "smolvlm"
    assert "model.safetensors" in {sibling.rfilename for sibling in model.siblings}
    assert (model.pipeline_tag, model.gated, model.downloads) == ("image-text-to-text", False, 20)


def test_model_information_has_sizes_and_hashes(hub: HubServer, api: HfApi) -> None:
    info = api.model_info("org/name", files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert info.sha == hub.repos["org/name"].head.sha
    assert files["model.safetensors"].lfs.sha256 == hashlib.sha256(BIG).hexdigest()
    assert files["model.safetensors"].size == len(BIG)
    assert files["config.json"].lfs is None
    tree = {entry.path: entry for entry in api.list_repo_tree("org/name", recursive=True)}
    assert tree["model.safetensors"].lfs.sha256 == hashlib.sha256(BIG).hexdigest()
    assert set(tree) == {*FILES, "deep", "deep/er"}
    assert {entry.path for entry in api.list_repo_tree("org/name")} == {
        "config.json",
        "deep",
        "model.safetensors",
    }
    (info_of_one,) = api.get_paths_info("org/name", ["config.json"])
    assert info_of_one.size == len(FILES["config.json"])


def test_a_tree_comes_in_pages(hub: HubServer, api: HfApi) -> None:
    hub.page_size = 2
    assert {entry.path for entry in api.list_repo_tree("org/name", recursive=True)} == {
        *FILES,
        "deep",
        "deep/er",
    }
    assert len(hub.log.entries("/tree/")) == 3


def test_commits_are_kept_and_branches_move(hub: HubServer, api: HfApi) -> None:
    repo = hub.repos["org/name"]
    old = repo.head.sha
    repo.commit({"config.json": b"{}", "deep/er/notes.txt": None})
    assert api.model_info("org/name").sha != old
    for revision, content in ((old, FILES["config.json"]), (None, b"{}")):
        path = hf_hub_download("org/name", "config.json", revision=revision, endpoint=hub.endpoint)
        assert Path(path).read_bytes() == content
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/name", "deep/er/notes.txt", endpoint=hub.endpoint)
    repo.commit({"new.txt": b"x"}, ref="refs/pr/1")
    assert api.model_info("org/name", revision="refs/pr/1").sha == repo.refs["refs/pr/1"]


def test_each_refusal_has_its_own_exception(hub: HubServer, api: HfApi) -> None:
    def download(repo: str, name: str = "config.json", **options: str) -> None:
        hf_hub_download(repo, name, endpoint=hub.endpoint, **options)

    with pytest.raises(RepositoryNotFoundError):
        download("org/none")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/none")
    with pytest.raises(RevisionNotFoundError):
        download("org/name", revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/name", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        download("org/name", "none.txt")
    hub.repos["org/name"].private = True
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/name")


def test_a_gated_repository_opens_only_to_an_accepted_token(hub: HubServer, api: HfApi) -> None:
    hub.repos["org/name"].gated = "manual"
    hub.users |= {"hf_good": User("good"), "hf_other": User("other", frozenset())}
    assert api.model_info("org/name").gated == "manual"
    for token in (False, "hf_other"):
        with pytest.raises(GatedRepoError):
            hf_hub_download("org/name", "config.json", endpoint=hub.endpoint, token=token)
        with pytest.raises(GatedRepoError):
            api.auth_check("org/name", token=token)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_bad")
    assert api.whoami(token="hf_good")["name"] == "good"
    api.auth_check("org/name", token="hf_good")
    assert Path(hf_hub_download("org/name", "config.json", endpoint=hub.endpoint, token="hf_good")).exists()


def test_stock_checksums_agree_with_the_tree(hub: HubServer, api: HfApi) -> None:
    snapshot_download("org/name", endpoint=hub.endpoint)
    assert not api.verify_repo_checksums("org/name").mismatches


def test_an_expired_address_on_the_cdn_is_refused(hub: HubServer, api: HfApi) -> None:
    address = hub.sign("org/name", hub.repos["org/name"].head.files["model.safetensors"])
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == BIG
    hub.expire()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address)


def test_a_stopped_hub_refuses_and_comes_back_on_the_same_port(hub: HubServer, api: HfApi) -> None:
    hub.stop()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{hub.endpoint}/api/models")
    hub.start()
    assert api.model_info("org/name").id == "org/name"


def test_faults_and_log_are_reachable_from_another_process(hub: HubServer, api: HfApi) -> None:
    rules = json.dumps([{"kind": "status", "match": "/api/models", "status": 503, "times": 1}]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{hub.endpoint}/_faults", data=rules))
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{hub.endpoint}/api/models/org/name")
    with urllib.request.urlopen(f"{hub.endpoint}/_log") as answer:
        (entry,) = json.load(answer)
    assert (entry["status"], entry["faults"]) == (503, ["status"])


def test_real_weights_come_through_whole(tiny_sd: HubModel, api: HfApi) -> None:
    folder = Path(snapshot_download(tiny_sd.id, endpoint=tiny_sd.endpoint))
    names = [path.relative_to(tiny_sd.folder) for path in tiny_sd.folder.rglob("*") if path.is_file()]
    assert len(names) > 10
    assert all((folder / name).read_bytes() == (tiny_sd.folder / name).read_bytes() for name in names)
