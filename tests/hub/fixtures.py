"""Fixtures for every test in the project: the hub, an empty cache, and the real models."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import weights
from .server import HubServer


@dataclass(frozen=True)
class HubModel:
    """A real model: its repository on the test's hub, and the same files as a local folder."""

    id: str
    folder: Path
    hub: HubServer

    @property
    def endpoint(self) -> str:
        return self.hub.endpoint


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A hub with no repositories, no faults and an empty log."""
    with HubServer() as server:
        yield server


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face home for this test and the processes that it starts; its cache is ``hub/``."""
    home = tmp_path / "hf-home"
    cache = home / "hub"
    cache.mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    try:
        from huggingface_hub import constants
    except ImportError:
        return home
    # huggingface_hub reads the environment once, when it is imported
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    return home


@contextlib.contextmanager
def own_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A real file system of a test's own, at this folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, check=False).returncode:
        pytest.skip("needs Linux and the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 16 MiB, which `fill_disk` fills."""
    with own_disk(tmp_path / "disk", 16) as folder:
        yield folder


def fill_disk(folder: Path, leave: int = 0) -> Path:
    """Fill a disk up to so many bytes; the file that does it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
    if leave:
        os.truncate(ballast, ballast.stat().st_size - leave)
    return ballast


def _model(repo_id: str) -> Callable[[HubServer], HubModel]:
    def model(hub: HubServer) -> HubModel:
        weights.populate(hub.repos, repo_id)
        return HubModel(repo_id, weights.folder_of(repo_id), hub)

    return model


@pytest.fixture
def smollm2(hub: HubServer) -> HubModel:
    """SmolLM2-135M-Instruct as a 4-bit MLX repository (98 MB)."""
    return _model(weights.SMOLLM2)(hub)


@pytest.fixture
def smollm2_gguf(hub: HubServer) -> HubModel:
    """The same weights as the GGUF file that they come from (Q4_1, 98 MB)."""
    return _model(weights.SMOLLM2_GGUF)(hub)


@pytest.fixture
def minilm(hub: HubServer) -> HubModel:
    """all-MiniLM-L6-v2 as a sentence-transformers repository (fp32, 91 MB)."""
    return _model(weights.MINILM)(hub)


@pytest.fixture
def tiny_vlm(hub: HubServer) -> HubModel:
    """tiny-shapes-vlm, a trained SmolVLM of 4.6 million parameters (fp16, 9 MB)."""
    return _model(weights.TINY_VLM)(hub)


@pytest.fixture
def tiny_sd(hub: HubServer) -> HubModel:
    """tiny-shapes-sd, a trained Stable Diffusion of 3.8 million parameters (fp16, 7.7 MB)."""
    return _model(weights.TINY_SD)(hub)
