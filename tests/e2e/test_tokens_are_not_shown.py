"""A token appears in nothing that a person or a program gets to see: every verb, JSON, logs and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import MLXEngineError

from tests.hub.fixtures import HubModel
from tests.hub.processes import ROOT
from tests.hub.server import User

CANARY = "hf_CanaryCanaryCanaryCanary"


@pytest.fixture
def gated(tiny_vlm: HubModel) -> HubModel:
    tiny_vlm.hub.repos[tiny_vlm.id].gated = "manual"
    tiny_vlm.hub.users[CANARY] = User("someone")
    tiny_vlm.hub.cdn_mode = True
    return tiny_vlm


def _run(model: HubModel, cache: Path, *arguments: str, token: str = CANARY) -> tuple[int, str]:
    environment = os.environ | {
        "HF_TOKEN": token,
        "HF_ENDPOINT": model.endpoint,
        "HF_HUB_CACHE": str(cache),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mlxengine", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_no_verb_shows_the_token(gated: HubModel, hub_home: Path) -> None:
    cache, name = hub_home / "hub", gated.id
    shown = ""
    for arguments in (
        ("search", "tiny"),
        ("pull", name, "--plan"),
        ("pull", name, "--yes"),
        ("ls",),
        ("verify", name, "--deep"),
        ("repair", name),
        ("rm", name, "--dry-run"),
    ):
        code, output = _run(gated, cache, *arguments, "--json", "-vv")
        assert code == 0, output
        shown += output
    assert name in shown
    assert CANARY not in shown
    assert any(CANARY in (entry.authorization or "") for entry in gated.hub.log.entries("/resolve/"))
    assert not [path for path in cache.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_no_error_shows_the_token(gated: HubModel, hub_home: Path) -> None:
    gated.hub.users[CANARY].repos = frozenset()  # known, but its owner has not accepted the terms
    code, output = _run(gated, hub_home / "hub", "pull", gated.id, "--yes", "--json", "-vv")
    assert code == 3
    assert f"{gated.endpoint}/{gated.id}" in output
    assert CANARY not in output
    gated.hub.users.clear()
    code, output = _run(gated, hub_home / "hub", "pull", gated.id, "--yes", "--json", "-vv")
    assert code == 3
    assert CANARY not in output


def test_the_engine_and_its_errors_do_not_show_the_token(gated: HubModel, hub_home: Path) -> None:
    gated.hub.users.clear()
    with InferenceEngine(endpoint=gated.endpoint, cache_dir=hub_home / "hub", token=CANARY) as engine:
        with pytest.raises(MLXEngineError) as caught:
            engine.load(gated.id)
        assert CANARY not in repr(engine) + repr(vars(engine))
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
