"""The doctor names the cause and the remedy, whatever is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlxengine import CheckStatus, InferenceEngine, diagnose, hub
from mlxengine_markov import SPECIMEN

from tests.hub import weights
from tests.hub.server import HubServer

from .conftest import Ran

Run = Callable[..., Ran]
NO_PLUGINS = "import importlib.metadata as m\nm.entry_points = lambda **which: ()\n"


def install(folder: Path, name: str, module: str) -> str:
    """A distribution with one plugin entry point, on a folder for PYTHONPATH."""
    info = folder / f"mlxengine_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mlxengine-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mlxengine]\n{name} = mlxengine_{name}\n")
    (folder / f"mlxengine_{name}.py").write_text(module)
    return str(folder)


def checks(done: Ran) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in done.json["checks"]}


def test_a_sound_installation_passes(run: Run) -> None:
    done = run("doctor", "--json", MLXENGINE_FEATURES="")
    assert (done.code, done.json["ok"]) == (0, True)
    found = checks(done)
    assert {"machine", "mlx", "plugin llm", "models", "disk"} <= set(found)
    assert done.json["device"]["backend"] in ("cpu", "cuda", "metal")
    assert done.json["versions"]["mlx"]


def test_without_a_plugin_it_names_the_extras(run: Run, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_PLUGINS)
    done = run("doctor", "--json", PYTHONPATH=str(tmp_path), MLXENGINE_FEATURES="")
    assert done.code == 1
    check = checks(done)["plugins"]
    assert check["status"] == "failed"
    assert 'pip install "mlxengine[llm]"' in check["remedy"]


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import no_such_library", "no_such_library"),
        ("raise SystemExit(3)", "SystemExit"),
        ("", "claim_model"),
        (
            "from mlxengine import hookimpl\n@hookimpl\ndef load_modle(card): ...\n",
            "load_modle",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution_and_the_rest_works(
    run: Run, tmp_path: Path, module: str, cause: str
) -> None:
    path = install(tmp_path / "site", "broken", module)
    done = run("doctor", "--json", PYTHONPATH=path, MLXENGINE_FEATURES="")
    assert done.code == 1
    check = checks(done)["plugin broken"]
    assert check["status"] == "failed"
    assert cause in check["detail"]
    assert check["remedy"]
    assert checks(done)["plugin llm"]["status"] == "ok"
    spoken = run("plugins", PYTHONPATH=path)
    assert "set aside" in spoken.out


@pytest.mark.skipif(sys.platform != "linux", reason="only mlx on a Linux CPU lacks a fast BLAS")
@pytest.mark.parametrize(
    ("setting", "remedy"), [("off", "Unset MLXENGINE_BLAS"), ("/no/lib.so", "Correct MLXENGINE")]
)
def test_without_a_blas_it_says_how_slow_products_are_and_what_to_do(
    run: Run, setting: str, remedy: str
) -> None:
    done = run("doctor", "--json", MLXENGINE_FEATURES="", MLXENGINE_BLAS=setting)
    check = checks(done)["BLAS"]
    assert check["status"] == "warning"
    assert "GFLOP/s, which is slow" in check["detail"]
    assert remedy in check["remedy"]
    assert done.json["gflops"] < 8


def test_with_the_mock_it_says_that_nothing_is_real(run: Run) -> None:
    check = checks(run("doctor", "--json"))["mock"]
    assert (check["status"], check["remedy"]) == ("warning", "Turn core.mock off.")


def test_without_mlx_it_names_the_back_ends(run: Run, tmp_path: Path) -> None:
    hide = "import sys\nsys.modules['mlx.core'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    done = run("doctor", "--json", PYTHONPATH=str(tmp_path), MLXENGINE_FEATURES="")
    assert done.code == 1
    check = checks(done)["mlx"]
    assert check["status"] == "failed"
    assert "mlxengine[cpu]" in check["detail"] + check["remedy"]


def test_without_mlx_all_is_well_where_no_plugin_needs_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['mlx.core'] = None\n")
    off = ",".join(f"-{record.name}" for record in InferenceEngine().plugins if record.name != "markov")
    env = {"PYTHONPATH": str(tmp_path), "MLXENGINE_FEATURES": "", "MLXENGINE_PLUGINS": off}
    done = run("doctor", "--json", **env)
    assert (done.code, checks(done)["mlx"]["status"]) == (0, "ok")
    assert checks(done)["plugin llm"]["detail"] == "mlxengine-llm, turned off"
    done = run("setup", "--yes", "--kind", "markov", "--model", str(SPECIMEN), "--json", **env)
    assert (done.code, done.json["model"]) == (0, str(SPECIMEN))


def test_a_bad_setting_is_a_failed_check_and_not_the_end(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[hub]\nendpiont = 1")
    done = run("doctor", "--json", MLXENGINE_CONFIG=str(file), MLXENGINE_FEATURES="")
    assert "endpiont" in checks(done)["configuration"]["detail"]
    done = run("doctor", "--json", MLXENGINE_FEATURES="llm.nonsense")
    assert "llm.nonsense" in checks(done)["features"]["detail"]
    assert run("doctor", "--json", MLXENGINE_FEATURES="=").code == 1


def test_a_damaged_model_in_the_cache_is_named_with_the_repair(
    run: Run, env: dict[str, str], hub: HubServer, tmp_path: Path
) -> None:
    cache = Path(env["HF_HUB_CACHE"])
    weights.populate(hub.repos, weights.TINY_SD)
    folder = fetch(hub, cache)
    assert checks(run("doctor", "--json"))["models"]["detail"].startswith("1 of 1")
    victim = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size).resolve()
    with victim.open("r+b") as file:
        file.truncate(1000)
    done = run("doctor", "--json")
    check = checks(done)[f"model {weights.TINY_SD}"]
    assert done.code == 1
    assert "safetensors" in check["detail"]
    assert check["remedy"] == f"mlxengine repair {weights.TINY_SD}"


def fetch(server: HubServer, cache: Path) -> Path:
    return hub.fetch(weights.TINY_SD, endpoint=server.endpoint, cache_dir=cache)


def test_no_network_is_a_failed_check_only_where_it_was_asked_for(run: Run) -> None:
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "MLXENGINE_FEATURES": ""}
    assert "hub" not in checks(run("doctor", "--json", **dead))
    done = run("doctor", "--network", "--json", **dead)
    assert done.code == 1
    assert checks(done)["hub"]["status"] == "failed"
    assert checks(done)["hub"]["remedy"]


def test_no_secret_is_printed(run: Run) -> None:
    done = run("doctor", "--json", HF_TOKEN="hf_verysecret", MLXENGINE_FEATURES="")
    assert "verysecret" not in done.out + done.err


def test_the_plugins_own_tests_run_on_request(run: Run) -> None:
    found = checks(run("doctor", "--self-test", "--json", MLXENGINE_FEATURES=""))
    tested = {name.partition(": ")[0] for name in found if ": " in name}
    assert {"llm", "embed", "diffusion", "markov"} <= tested
    assert {check["status"] for name, check in found.items() if ": " in name} == {"ok"}


def test_an_application_gets_the_same_as_values() -> None:
    found = diagnose()
    assert found.ok == all(check.status is not CheckStatus.FAILED for check in found.checks)
    assert found.device.backend in ("cpu", "cuda", "metal")
    assert dict(found.versions)["mlx"]
