"""Real models through the Hugging Face API: pulled, verified, run, run again without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from mlxengine import GenerateParams, InferenceEngine
from mlxengine import hub as client
from mlxengine.errors import CorruptFileError, OfflineError, UnsupportedArchitectureError

from tests.hub.fixtures import HubModel
from tests.hub.processes import ROOT

QUESTION = "What is the capital of France?"
GREEDY = GenerateParams(max_tokens=12, temperature=0.0)
SENTENCES = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]


def _engine(model: HubModel, home: Path, *, offline: bool = False) -> InferenceEngine:
    return InferenceEngine(endpoint=model.endpoint, cache_dir=home / "hub", offline=offline)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _ask(model: HubModel, home: Path, *, offline: bool = False) -> str:
    with _engine(model, home, offline=offline) as engine:
        return engine.load_text(model.id).generate(QUESTION, GREEDY).text


def test_smollm2_is_pulled_verified_and_run_and_runs_again_without_a_network(
    smollm2: HubModel, hub_home: Path
) -> None:
    answer = _ask(smollm2, hub_home)
    assert "Paris" in answer
    assert smollm2.hub.log.bytes() <= _size(smollm2.folder)
    assert client.verify(smollm2.id, deep=True, cache_dir=hub_home / "hub").ok
    smollm2.hub.stop()
    smollm2.hub.log.clear()
    assert _ask(smollm2, hub_home, offline=True) == answer
    assert not smollm2.hub.log.entries()


def test_minilm_is_pulled_verified_and_run_and_runs_again_without_a_network(
    minilm: HubModel, hub_home: Path
) -> None:
    with _engine(minilm, hub_home) as engine:
        first = engine.load_embeddings(minilm.id).embed(SENTENCES).numpy()
    assert first.shape == (3, 384)
    same, other = float(first[0] @ first[1]), float(first[0] @ first[2])
    assert same > 0.6 > 0.2 > other
    assert client.verify(minilm.id, deep=True, cache_dir=hub_home / "hub").ok
    minilm.hub.stop()
    with _engine(minilm, hub_home) as engine:  # nobody says that there is none
        again = engine.load_embeddings(minilm.id).embed(SENTENCES).numpy()
    assert (first == again).all()


def test_a_cache_that_the_stock_client_filled_is_adopted_without_a_byte(
    minilm: HubModel, hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    snapshot_download(minilm.id, endpoint=minilm.endpoint, cache_dir=hub_home / "hub")
    minilm.hub.log.clear()
    with _engine(minilm, hub_home) as engine:
        assert engine.load_embeddings(minilm.id).embed(SENTENCES).numpy().shape == (3, 384)
    assert minilm.hub.log.bytes() == 0
    assert client.verify(minilm.id, cache_dir=hub_home / "hub").ok


def test_a_damaged_cache_of_the_stock_client_is_not_adopted(
    minilm: HubModel, hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    folder = Path(snapshot_download(minilm.id, endpoint=minilm.endpoint, cache_dir=hub_home / "hub"))
    _rot((folder / "model.safetensors").resolve())
    minilm.hub.log.clear()
    with _engine(minilm, hub_home) as engine:
        engine.load_embeddings(minilm.id)
    assert minilm.hub.log.bytes() == (minilm.folder / "model.safetensors").stat().st_size


def _rot(path: Path, *, keep_time: bool = True) -> None:
    """One bit, in the middle of the weights."""
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(stat.st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(stat.st_size // 2)
        stream.write(bytes([byte ^ 0x10]))
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_of_a_gguf_repository_one_file_that_can_be_read_is_fetched_and_answers(
    smollm2_gguf: HubModel, hub_home: Path
) -> None:
    repo = smollm2_gguf.hub.repos[smollm2_gguf.id]
    (name,) = repo.head.files
    content = repo.head.files[name].read()
    others = {
        "SmolLM2-Q6_K.gguf": content + b"\0",
        "SmolLM2-F16.gguf": content + b"\0\0",
        "imatrix.dat": b"x",
    }
    repo.commit({"SmolLM2-Q4_1.gguf": content, name: None, **others})
    assert "Paris" in _ask(smollm2_gguf, hub_home)
    fetched = {path.name for path in (hub_home / "hub").rglob("snapshots/*/*")}
    assert fetched == {"SmolLM2-Q4_1.gguf"}


def test_a_gguf_repository_that_cannot_be_read_is_refused_before_its_weights_are_fetched(
    smollm2_gguf: HubModel, hub_home: Path
) -> None:
    repo = smollm2_gguf.hub.repos[smollm2_gguf.id]
    (file,) = repo.head.files.values()
    content = file.read()
    at = content.index(b"\x00\x00\x00general.architecture") + 3 + len("general.architecture") + 4 + 8
    assert content[at : at + 5] == b"llama"
    repo.commit({file.path: content[:at] + b"lllma" + content[at + 5 :]})
    with (
        _engine(smollm2_gguf, hub_home) as engine,
        pytest.raises(UnsupportedArchitectureError, match="lllma"),
    ):
        engine.load(smollm2_gguf.id)
    assert smollm2_gguf.hub.log.bytes() < 10_000_000


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_was_modified_between_two_loads_is_found_before_anything_is_loaded(
    minilm: HubModel, hub_home: Path, name: str
) -> None:
    path = client.fetch(minilm.id, files=["*"], endpoint=minilm.endpoint, cache_dir=hub_home / "hub")
    _rot((path / name).resolve(), keep_time=False)
    with (
        _engine(minilm, hub_home, offline=True) as engine,
        pytest.raises((CorruptFileError, OfflineError), match=name.replace(".", r"\.")),
    ):
        engine.load_embeddings(minilm.id)
    minilm.hub.log.clear()
    with _engine(minilm, hub_home) as engine:
        engine.load_embeddings(minilm.id).embed(SENTENCES)
    assert minilm.hub.log.bytes() == (minilm.folder / name).stat().st_size


def test_rot_that_keeps_size_and_time_is_found_where_it_is_looked_for(
    minilm: HubModel, hub_home: Path
) -> None:
    path = client.fetch(minilm.id, files=["*"], endpoint=minilm.endpoint, cache_dir=hub_home / "hub")
    _rot((path / "model.safetensors").resolve())
    assert client.verify(minilm.id, cache_dir=hub_home / "hub").ok
    report = client.verify(minilm.id, deep=True, cache_dir=hub_home / "hub")
    assert [file.path for file in report.bad] == ["model.safetensors"]
    with _engine(minilm, hub_home, offline=True) as engine, pytest.raises(CorruptFileError):
        engine.load_embeddings(minilm.id, verify="deep")
    with _engine(minilm, hub_home) as engine:  # with a network it is put right
        engine.load_embeddings(minilm.id, verify="deep")
    assert client.verify(minilm.id, deep=True, cache_dir=hub_home / "hub").ok


_LOADER = """
import json, sys
from mlxengine import GenerateParams, InferenceEngine
endpoint, cache, model, question = sys.argv[1:]
with InferenceEngine(endpoint=endpoint, cache_dir=cache) as engine:
    chat = engine.load_text(model)
    print(json.dumps(chat.generate(question, GenerateParams(max_tokens=8, temperature=0.0)).text))
"""


@pytest.mark.slow
def test_four_processes_that_load_the_same_model_send_each_byte_once_and_all_answer(
    smollm2: HubModel, hub_home: Path
) -> None:
    arguments = [smollm2.endpoint, str(hub_home / "hub"), smollm2.id, QUESTION]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _LOADER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = [json.loads(process.communicate(timeout=280)[0].splitlines()[-1]) for process in running]
    assert len(set(answers)) == 1
    assert "Paris" in answers[0]
    fetched = sum(
        (smollm2.folder / path.name).stat().st_size for path in (hub_home / "hub").rglob("snapshots/*/*")
    )
    assert smollm2.hub.log.bytes() == fetched
