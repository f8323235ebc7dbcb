"""Distributions as their users get them: wheels built from sdists, in fresh environments."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from .environments import ROOT, Environment, conjure, first_party, run
from .test_versions import EXAMPLES

LIST = """
import json
from mlxengine import InferenceEngine
with InferenceEngine() as engine:
    print(json.dumps([[r.name, r.distribution, r.error and str(r.error)] for r in engine.plugins]))
"""
CONTINUE = """
from mlxengine import InferenceEngine
from mlxengine_markov import SPECIMEN, ContinueRequest
with InferenceEngine() as engine, engine.load(SPECIMEN) as chain:
    result = chain.run(ContinueRequest(text="round the", length=4, seed=0))
    print("".join(event.text for event in result.events), chain.kind, chain.plugin)
"""
LOAD = """
import sys
from mlxengine import InferenceEngine, MLXEngineError
with InferenceEngine() as engine:
    try:
        engine.load(sys.argv[1])
    except MLXEngineError as error:
        print(type(error).__name__, error)
"""
CHECK = """
from mlxengine.testing import Example, Specimen, check_plugin
from mlxengine_markov import SPECIMEN, ContinueRequest
first = Example(request=ContinueRequest(text="round the", length=4, seed=0), shows={"continuation", "word"})
second = Example(request=ContinueRequest(text="the cat", length=9, seed=1))
outcomes = list(check_plugin("markov", Specimen(path=SPECIMEN, examples=[first, second])))
print(len(outcomes), [item.failure for item in outcomes if item.failure or not item.checked])
"""
HOOKS = """
from mlxengine import hookimpl, Claim, Fit, Loaded, Finished
@hookimpl
def claim_model(card{extra}):
    return Claim(kind="x", fit=Fit.{fit}, uses_mlx=False) if card.architecture == "markov" else None
@hookimpl
def load_model(card, context):
    return Loaded(model=1)
@hookimpl
def generate(model, request, context):
    return iter([Finished()])
"""
LATE = """
import sys
from mlxengine import InferenceEngine
from mlxengine.errors import AmbiguousModelError
from mlxengine_markov import SPECIMEN, ContinueRequest
with InferenceEngine() as engine:
    chain = engine.load(SPECIMEN)
    engine.register(sys.modules["__main__"], "late")
    result = chain.run(ContinueRequest(text="round the", length=4, seed=0))
    print("".join(event.text for event in result.events), chain.plugin)
    try:
        engine.explain(SPECIMEN)
    except AmbiguousModelError as error:
        print(error)
"""


def plugins(environment: Environment) -> dict[str, tuple[str, str | None]]:
    return {f"{name}/{dist}": error for name, dist, error in json.loads(environment.run(LIST).stdout)}


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.py")
    }


def test_every_distribution_builds_a_wheel_from_its_sdist_with_license_types_and_no_tests(
    wheels: Path,
) -> None:
    found = sorted(wheels.glob("*.whl"))
    assert len(found) == len(first_party()) == len(list(wheels.glob("*.tar.gz")))
    for wheel in found:
        names = zipfile.ZipFile(wheel).namelist()
        assert any(name.endswith("py.typed") for name in names), wheel.name
        assert not [name for name in names if "tests/" in name or name.startswith(("tests", "docs"))], (
            wheel.name
        )
        assert wheel.stat().st_size < 1 << 20, wheel.name
        if wheel.name.startswith(
            ("mlxengine_llm", "mlxengine_vlm", "mlxengine_embed", "mlxengine_diffusion", "mlxengine_video")
        ):
            assert any(name.endswith("/models.json") for name in names), wheel.name
        if not wheel.name.startswith(tuple(name.replace("-", "_") for name in EXAMPLES)):
            assert any("/licenses/" in name for name in names), wheel.name


def test_every_distribution_is_what_an_index_would_take(wheels: Path) -> None:
    built = [path for path in wheels.iterdir() if path.suffix in (".whl", ".gz")]
    run([sys.executable, "-m", "twine", "check", "--strict", *built])
    run([sys.executable, "-m", "check_wheel_contents", *wheels.glob("*.whl")])


def test_markov_runs_from_its_wheel_keeps_every_clause_and_vanishes_with_it(bare: Environment) -> None:
    core = digest(bare.site / "mlxengine")
    bare.ours("mlxengine-markov")
    assert plugins(bare) == {"markov/mlxengine-markov": None}
    assert bare.run(CONTINUE).stdout.split() == ["house", "they", "ran,", "the", "markov", "markov"]
    specimen = bare.site / "mlxengine_markov" / "specimen"
    said = bare.command("markov", "say", str(specimen), "round the", "--length", "4", "--seed", "0")
    assert said.stdout == " house they ran, the\n"
    count, failures = bare.run(CHECK).stdout.split(" ", 1)
    assert (int(count) > 20, failures.strip()) == (True, "[]")
    assert digest(bare.site / "mlxengine") == core
    kept = bare.folder / "kept"
    specimen.rename(kept)
    bare.uninstall("mlxengine-markov")
    assert plugins(bare) == {}
    assert bare.run(LOAD, str(kept)).stdout.startswith("NoPluginForModelError")
    assert bare.command("markov", "say", str(kept), check=False).returncode == 2


def test_a_broken_plugin_is_set_aside_with_its_distribution_named_and_the_rest_works(
    bare: Environment, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    here = Environment(bare.folder, made)
    good = HOOKS.format(extra="", fit="FALLBACK")
    odd = HOOKS.format(extra=", weight", fit="NATIVE")
    planted = {
        "broken-import": ("broken", "import no_such_library_xyz\n"),
        "twin-one": ("twin", good),
        "twin-two": ("twin", good),
        "odd-hook": ("odd", odd),
        "exits": ("exits", "raise SystemExit(3)\n"),
        "gone": ("gone", ""),
    }
    for name, (point, code) in planted.items():
        module = name.replace("-", "_")
        value = "gone:nothing" if name == "gone" else module
        here.ours(conjure(made, name, {f"{module}.py": code}, {point: value}))
    bare.ours("mlxengine-markov")
    found = plugins(bare)
    assert found.pop("markov/mlxengine-markov") is None
    expected = {
        "broken/broken-import": "no_such_library_xyz",
        "twin/twin-one": "twin-one, twin-two",
        "twin/twin-two": "twin-one, twin-two",
        "odd/odd-hook": "weight",
        "exits/exits": "SystemExit",
        "gone/gone": "nothing",
    }
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in str(found[name]), found[name]
    assert "house they ran, the markov markov" in bare.run(CONTINUE).stdout
    listed = bare.command("plugins").stdout
    assert [name for name in planted if name not in listed] == []
    chosen = 'InferenceEngine(distributions={"twin": "twin-one"})'
    answer = json.loads(bare.run(LIST.replace("InferenceEngine()", chosen)).stdout)
    assert ["twin", "twin-one", None] in answer


def test_a_plugin_that_registers_after_a_load_does_not_take_over_the_live_model(bare: Environment) -> None:
    bare.ours("mlxengine-markov")
    code = HOOKS.format(extra="", fit="NATIVE") + LATE
    first, second = bare.run(code).stdout.splitlines()
    assert first == " house they ran, the markov"
    assert "'late'" in second
    assert "mlxengine-markov" in second


@pytest.mark.parametrize("word", ["--help", "plugins", "features"])
def test_the_command_of_a_bare_core_works_without_any_plugin(word: str, core_alone: Environment) -> None:
    assert core_alone.command(word).stdout


@pytest.mark.slow
def test_audio_runs_from_its_wheel_on_mlx_audio_and_vanishes_with_it(bare: Environment) -> None:
    tests = ROOT / "docs/examples/mlxengine-audio/tests"
    bare.others("mlx[cpu]", "mlx-audio", "numpy")
    core = digest(bare.site / "mlxengine")
    bare.ours("mlxengine-audio")
    assert plugins(bare) == {"audio/mlxengine-audio": None}
    said = bare.command("listen", "-m", str(tests / "specimen"), str(tests / "two-sentences.wav"))
    assert len(said.stdout.splitlines()) == 3
    assert digest(bare.site / "mlxengine") == core
    bare.uninstall("mlxengine-audio")
    assert plugins(bare) == {}
    assert bare.run(LOAD, str(tests / "specimen")).stdout.startswith("NoPluginForModelError")


KNOWS = """
import json, os, subprocess, sys, time
from pathlib import Path
from mlxengine import InferenceEngine
from mlxengine_forecast import ForecastHandle, write_random_model

folder = str(write_random_model(Path(sys.argv[1]), seed=0))
Path(sys.argv[2]).write_text(f'[[models]]\\nid = "{folder}"\\nkind = "forecast"\\nmemory_bytes = 2500\\n')
os.environ["MLXENGINE_CONFIG"] = sys.argv[2]
COMMAND = [sys.executable, "-m", "mlxengine"]


def said(*words):
    return json.loads(subprocess.run([*COMMAND, *words, "--json"], capture_output=True, text=True).stdout)


with InferenceEngine() as engine, engine.load(folder) as handle:
    print(type(handle) is ForecastHandle, len(handle.forecast([1, 2, 3], 4)))
    time.sleep(1)  # other processes are told a few times a second
    print(sorted({model["kind"] for holder in said("ps")["engines"] for model in holder["models"]}))
print(len(said("run", "-m", folder, "1", "2", "--horizon", "3")["forecast"]))
print(said("bench", "-m", folder, "--repeats", "1", "--horizon", "2")["kind"])
print([item["kind"] for item in said("models", "--kind", "forecast")["models"]])
print(said("recommend", "forecast")["needed_bytes"] < 10**5)
print(said("fit", folder, "--batch", "2")["fit"]["verdict"])
checks = {item["name"]: item["detail"] for item in said("doctor")["checks"]}
print(checks["plugin forecast"].partition(", ")[2])
print("forecast" in subprocess.run([*COMMAND, "search", "--help"], capture_output=True, text=True).stdout)
"""


@pytest.mark.slow
def test_a_kind_of_a_strangers_from_its_wheel_is_known_everywhere_and_core_is_as_it_was(
    bare: Environment, tmp_path: Path
) -> None:
    bare.others("mlx[cpu]")
    core = digest(bare.site / "mlxengine")
    bare.ours("mlxengine-forecast")
    said = bare.run(KNOWS, str(tmp_path / "model"), str(tmp_path / "mlxengine.toml")).stdout.splitlines()
    assert said == [
        "True 4",
        "['forecast']",
        "3",
        "forecast",
        "['forecast']",
        "True",
        "fits",
        "brings forecast",
        "True",
    ]
    assert digest(bare.site / "mlxengine") == core
    bare.uninstall("mlxengine-forecast")
    assert bare.run(LOAD, str(tmp_path / "model")).stdout.startswith("NoPluginForModelError")


TALKS = """
import json, os, subprocess, sys
from pathlib import Path
from mlxengine import InferenceEngine, TextHandle
from mlxengine.errors import FeatureUnavailableError
from mlxengine_echo import write_model

folder = str(write_model(Path(sys.argv[1])))


def said(*words, given=""):
    command = [sys.executable, "-m", "mlxengine", *words]
    return subprocess.run(command, capture_output=True, text=True, input=given).stdout.strip()


def weather(city: str) -> str:
    return f"It rains in {city}."


with InferenceEngine() as engine, engine.load_text(folder) as echo:
    print(type(echo) is TextHandle, echo.kind, echo.plugin, echo.generate("good morning").text)
    session = echo.session(tools=[weather], tool_rounds=1)
    print(session.respond('weather {"city": "Oslo"}').text)
print(said("run", "-m", folder, "hi", "there"))
print(said("chat", "-m", folder, given="good day"))
print(json.loads(said("bench", "-m", folder, "--repeats", "1", "--json"))["kind"])
print(json.loads(said("doctor", "--json"))["ok"], "mlx" in sys.modules)
"""


@pytest.mark.slow
def test_a_second_back_end_of_text_works_from_its_wheel_without_mlx_and_vanishes_with_it(
    bare: Environment, tmp_path: Path
) -> None:
    core = digest(bare.site / "mlxengine")
    bare.ours("mlxengine-echo")
    assert bare.run(TALKS, str(tmp_path / "model")).stdout.splitlines() == [
        "True llm echo good morning",
        "It rains in Oslo.",
        "hi there",
        "good day",
        "llm",
        "True False",
    ]
    assert digest(bare.site / "mlxengine") == core
    bare.uninstall("mlxengine-echo")
    assert plugins(bare) == {}
    assert bare.run(LOAD, str(tmp_path / "model")).stdout.startswith("NoPluginForModelError")
