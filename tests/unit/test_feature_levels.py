"""Each level sets a flag where a user would: file, environment, engine, load, call; the strongest wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from mlxengine import (
    Claim,
    Event,
    Feature,
    Finished,
    Fit,
    InferenceEngine,
    Loaded,
    ModelConfiguration,
    Stage,
    TextDelta,
    TextRequest,
    hookimpl,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnknownFeatureError

LEVEL = Feature(name="echo.level", default="default", summary="Who set it.")
BROKEN = Feature(name="echo.broken", default=True, summary="Never works.", probe=lambda: "it is broken")
ORDER = ["file", "environment", "engine", "load", "call"]


class Echo:
    """Answers with the value of its flag."""

    @hookimpl
    def list_features(self) -> list[Feature[Any]]:
        return [LEVEL, BROKEN]

    @hookimpl
    def claim_model(self, card: Any) -> Claim:
        return Claim(kind="llm", fit=Fit.NATIVE, files=("*.json",), uses_mlx=False)

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        return Loaded(model=context.features.get(LEVEL))

    @hookimpl
    def generate(self, model: str, request: Any, context: Any) -> Iterator[Event]:
        yield TextDelta(text=f"{model} {context.features.get(LEVEL)}")
        yield Finished()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "echo"}')
    return made


@pytest.mark.parametrize("count", range(len(ORDER) + 1))
def test_the_strongest_of_the_levels_that_speak_wins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    speaking = ORDER[:count]
    file = tmp_path / "mlxengine.toml"
    file.write_text('[features]\necho.level = "file"\n' if "file" in speaking else "")
    monkeypatch.setenv("MLXENGINE_CONFIG", str(file))
    monkeypatch.setenv("MLXENGINE_FEATURES", "echo.level=environment" if "environment" in speaking else "")

    def flags(level: str) -> dict[str, object]:
        return {"echo.level": level} if level in speaking else {}

    with InferenceEngine(plugins=[("echo", Echo())], features=flags("engine")) as engine:
        outer = [level for level in speaking if level in ORDER[:3]]
        assert engine.features.explain(LEVEL).value == (outer[-1] if outer else "default")
        model = engine.load_text(folder, features=flags("load"))
        at_load = [level for level in speaking if level != "call"]
        expected = at_load[-1] if at_load else "default"
        found = model.explain(LEVEL)
        assert (found.value, found.source.value) == (expected, expected)
        request = attrs.evolve(TextRequest(prompt="x"), features=tuple(flags("call").items()))
        assert model.generate(request).text == f"{expected} {speaking[-1] if speaking else 'default'}"


def test_asking_for_what_is_not_available_raises_wherever_it_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {"echo.broken": True}
    with InferenceEngine(plugins=[("echo", Echo())]) as engine:
        with pytest.raises(FeatureUnavailableError, match="it is broken"):
            engine.load(folder, features=asked)
        with pytest.raises(UnknownFeatureError, match=r"echo\.level"):
            engine.load(folder, features={"echo.levle": "x"})
        model = engine.load_text(folder)
        with pytest.raises(FeatureUnavailableError):
            model.generate(attrs.evolve(TextRequest(prompt="x"), features=tuple(asked.items())))
    with pytest.raises(FeatureUnavailableError):
        InferenceEngine(plugins=[("echo", Echo())], features=asked)
    monkeypatch.setenv("MLXENGINE_FEATURES", "echo.broken")
    with pytest.raises(FeatureUnavailableError):
        InferenceEngine(plugins=[("echo", Echo())])


class Deaf(Echo):
    """Serves the same kind, and heeds of the other's flags those that it is told to."""

    def __init__(self, *honours: str) -> None:
        self.honours = honours

    @hookimpl
    def list_features(self) -> list[Feature[Any]]:
        return []

    @hookimpl
    def claim_model(self, card: Any) -> Claim:
        return Claim(kind="llm", fit=Fit.PARTIAL, files=("*.json",), uses_mlx=False, honours=self.honours)


def test_a_flag_of_another_plugins_is_refused_and_not_ignored(folder: Path) -> None:
    asked = {"echo.level": "loud"}
    words = "flag of the plugin 'echo', which 'deaf' does not honour"
    with InferenceEngine(plugins=[("echo", Echo()), ("deaf", Deaf())]) as engine:
        with pytest.raises(FeatureUnavailableError, match=words):
            engine.load(folder, plugin="deaf", features=asked)
        model = engine.load_text(folder, plugin="deaf")
        with pytest.raises(FeatureUnavailableError, match=words):
            model.generate(attrs.evolve(TextRequest(prompt="x"), features=tuple(asked.items())))
        found = model.explain("echo.level")
        assert (found.available, found.value) == (False, "default")
        assert words in found.reason
        assert model.explain("core.degrade").available
        engine.load_text(folder, plugin="deaf", features={"echo.level": "default"})  # it is off


def test_what_no_flag_can_be_is_refused(folder: Path) -> None:
    with (
        InferenceEngine(plugins=[("echo", Echo())]) as engine,
        pytest.raises(InvalidParameterError, match=r"echo\.level=\['loud'\]"),
    ):
        engine.load(folder, features={"echo.level": ["loud"]})


def test_a_back_end_that_honours_anothers_flag_is_given_it(folder: Path) -> None:
    with InferenceEngine(plugins=[("echo", Echo()), ("deaf", Deaf("echo.level"))]) as engine:
        model = engine.load_text(folder, plugin="deaf", features={"echo.level": "loud"})
        assert model.explain("echo.level").available
        request = attrs.evolve(TextRequest(prompt="x"), features=(("echo.level", "soft"),))
        assert model.generate(request).text == "loud soft"


def test_the_mock_back_end_takes_every_flag(folder: Path) -> None:
    with InferenceEngine(plugins=[("echo", Echo())], backend="mock") as engine:
        assert engine.load_text("any/name", features={"echo.level": "loud"}).generate("x").mock


class Aside(Echo):
    """Serves what its flag asks for, whoever else would."""

    @hookimpl
    def list_features(self) -> list[Feature[Any]]:
        return [Feature(name="aside.wanted", default=False, summary="Serve it.", stage=Stage.EXPERIMENTAL)]

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        flags = dict(card.configuration.features)
        wanted = flags.get("aside.wanted") in (True, "on")
        return Claim(kind="llm", fit=Fit.CHOSEN, files=("*.json",), uses_mlx=False) if wanted else None


@pytest.mark.parametrize("level", ["nobody", *ORDER[:-1]])
def test_a_plugin_is_chosen_by_a_flag_of_its_own_at_any_level(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    file = tmp_path / "mlxengine.toml"
    file.write_text("[features]\naside.wanted = true\n" if level == "file" else "")
    monkeypatch.setenv("MLXENGINE_CONFIG", str(file))
    monkeypatch.setenv("MLXENGINE_FEATURES", "aside.wanted=on" if level == "environment" else "")
    wanted = {"aside.wanted": True}
    plugins = [("echo", Echo()), ("aside", Aside())]
    with InferenceEngine(plugins=plugins, features=wanted if level == "engine" else None) as engine:
        loading = ModelConfiguration(
            id=str(folder), features=tuple(wanted.items()) if level == "load" else ()
        )
        assert engine.explain(loading).record.name == ("echo" if level == "nobody" else "aside")
