"""`mlxengine[all]` from wheels: every kind works, and the plugins pass their tests as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .environments import ROOT, Environment, installed, megabytes, published, run

KINDS = ["diffusion", "embed", "llm", "ray", "serve", "shard", "video", "vlm"]
DENIED = {
    "torch",
    "tensorflow",
    "jax",
    "diffusionkit",
    "mflux",
    "mlxengine-markov",
    "mlxengine-audio",
    "mlxengine-forecast",
    "mlxengine-echo",
}
TOOLS = [
    "pytest",
    "pytest-timeout",
    "hypothesis",
    "pexpect",
    "openai",
    "anthropic",
    "mkl; platform_machine == 'x86_64'",
]
WHERE = "import {0}, mlxengine; print(mlxengine.__file__, {0}.__file__, sep='\\n')"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    """A fresh environment with ``mlxengine[all]`` as a resolver installs it."""
    environment = Environment.make(tmp_path_factory.mktemp("everything") / "env", wheels)

    def wheel(name: str) -> str:
        [found] = wheels.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
        return found.as_uri()

    # each of ours by its file, so that no index is asked for it; the extra and the ranges are the wheels' own
    ours = [f"mlxengine-{kind} @ {wheel(f'mlxengine-{kind}')}" for kind in KINDS]
    environment.others(f"mlxengine[all] @ {wheel('mlxengine')}", *ours, "mlx[cpu]")
    return environment


@pytest.mark.slow
def test_all_brings_every_kind_a_sound_doctor_and_no_heavy_stranger(everything: Environment) -> None:
    assert installed(everything) & DENIED == set()
    size = megabytes(everything.site)
    found = json.loads(everything.command("plugins", "--json").stdout)
    assert sorted(item["name"] for item in found["plugins"] if not item["error"]) == KINDS
    said = json.loads(everything.command("doctor", "--json", check=False).stdout)
    assert said["ok"], [check for check in said["checks"] if check["status"] == "failed"]
    assert published()["all"] == pytest.approx(size, rel=0.2), f"all takes {size:.0f} MB"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plugins_tests_pass_on_the_installed_wheels(kind: str, everything: Environment) -> None:
    everything.others(*TOOLS)
    where = everything.run(WHERE.format(f"mlxengine_{kind}")).stdout.split()
    assert [path for path in where if not Path(path).is_relative_to(everything.site)] == []
    words = [everything.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"plugins/mlxengine-{kind}"]
    done = run(words, cwd=ROOT)
    assert " passed" in done.stdout
