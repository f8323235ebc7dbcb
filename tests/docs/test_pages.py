"""What the documentation says is true: its code runs, its tables are complete, it builds unwarned."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import weights
from tests.hub.server import HubServer

from . import kit_tables
from .blocks import ROOT, blocks, pages

sys.path += [str(ROOT / "plugins" / name / "tests") for name in ("mlxengine-embed", "mlxengine-video")]

import picture_checkpoints
import tiny_wan

SEEING = "google/siglip-base-patch16-224"  # a small one with random weights stands for it
MOVING = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # likewise
ELSEWHERE = ROOT / "docs/how-to/frameworks.md"  # needs the frameworks: tests/integrations/check_page.py
RUNNING = [page for page in pages() if page != ELSEWHERE and any(block.runs for block in blocks(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which the real models can be downloaded, into a cache that starts out empty."""
    home = tmp_path_factory.mktemp("home")
    with HubServer() as hub:
        weights.populate(hub.repos)
        hub.repos.add_folder(picture_checkpoints.write("siglip", home), SEEING)
        hub.repos.add_folder(tiny_wan.write("t2v", home / "wan"), MOVING)
        yield {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MLXENGINE_"))},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home / "huggingface"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_every_code_block_of_the_page_runs(page: Path, surroundings: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.docs.run_page", str(page)]
    done = subprocess.run(
        command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_few_blocks_are_exempt_from_running_and_all_of_them_parse() -> None:
    found = [(name(page), block) for page in pages() for block in blocks(page)]
    exempt = [(page, block) for page, block in found if block.exempt]
    for _, block in exempt:
        ast.parse(block.text)
    assert len(exempt) <= 12, [page for page, _ in exempt]
    odd = {block.info for _, block in found if block.info.startswith("python")} - {"python", "python no-run"}
    assert odd == set(), "a block that is neither run nor counted"


def test_the_tables_of_clauses_and_of_careless_plugins_are_current() -> None:
    page = kit_tables.PAGE.read_text()
    assert page == kit_tables.made(page), "Run python -m tests.docs.kit_tables."


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "dummy",
        "docs",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
