"""The files of ``deploy`` are what their programs take; wheels of ours are asked of nobody else."""

from __future__ import annotations

import configparser
import plistlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
sys.path.insert(0, str(ROOT / "scripts"))

import wheels  # noqa: E402


def options(words: list[str]) -> None:
    """The words behind ``mlxengine serve`` are options that it has."""
    import argparse

    from mlxengine_serve.cli import configure

    parser = argparse.ArgumentParser()
    configure(parser)
    parser.add_argument("-v", action="store_true")
    parser.parse_args(words)


def test_the_systemd_unit_starts_the_server_and_ends_it_in_order() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    # what stands there to be turned on is no second line of what may stand once
    unit.read_string(re.sub(r"(?m)^#(?=\w+=)", "", (DEPLOY / "mlxengine.service").read_text()))
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    words = unit["Service"]["ExecStart"].split()
    assert words[:2] == ["/opt/mlxengine/bin/mlxengine", "serve"]
    options(words[2:])
    from mlxengine_serve._uvicorn import DRAIN_SECONDS

    assert int(unit["Service"]["TimeoutStopSec"]) > DRAIN_SECONDS
    assert unit["Service"]["Restart"] == "on-failure"


def test_the_launchd_agent_starts_the_same_server() -> None:
    agent = plistlib.loads((DEPLOY / "org.mlxengine.serve.plist").read_bytes())
    assert agent["ProgramArguments"][1] == "serve"
    options(agent["ProgramArguments"][2:])
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["Label"] == "org.mlxengine.serve"


def test_the_container_has_what_serve_asks_for_when_others_can_reach_it() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    assert entry is not None
    assert entry[1] == '["mlxengine", "serve", "--host", "0.0.0.0"]'
    assert "--no-index" in text, "nothing comes from an index"
    assert "MLXENGINE_SERVE_KEYS" in text
    assert re.search(r"^USER (?!root|0)", text, re.MULTILINE)


def test_offline_wheels_bring_our_own_from_here_and_only_others_from_an_index() -> None:
    ours, others = wheels.needed(["serve", "llm", "cpu"])
    assert {folder.name for folder in ours if folder != ROOT} == {"mlxengine-serve", "mlxengine-llm"}
    names = {wheels.normal(item) for item in others}
    assert {"starlette", "uvicorn", "httptools", "python-multipart", "mlx-lm", "mlx", "attrs"} <= names
    assert not [name for name in names if name.startswith("mlxengine")]
    assert "mlx-vlm" not in names
    everything, _ = wheels.needed(["all"])
    assert len(everything) == 9
    with pytest.raises(SystemExit, match="no extra 'serv'"):
        wheels.needed(["serv"])
