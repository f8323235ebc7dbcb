"""The configuration file: what it may hold, and what is said about what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlxengine import Provenance
from mlxengine._config import Settings, default_path, feature_layers, load_settings
from mlxengine.contract.features import Level
from mlxengine.errors import ConfigurationError, InvalidParameterError

FULL = """
model = "org/name@main"
[features]
llm.kv_bits = 4
"llm.prompt_cache" = false
[features.vlm]
prefill = "fast"
[hub]
endpoint = "https://hub.example"
cache_dir = "~/models"
offline = true
[plugins]
llm = "mlxengine-llm"
audio = false
[[models]]
id = "org/small"
kind = "llm"
size = "135M"
context_length = 2048
extra_eos_tokens = ["<end>"]
features = { llm.kv_bits = 8 }
provenance = { checked = "2026-11-22", source = "hub", fields = ["size"] }
sources = [{ checked = "2026-11-22", source = "https://card.example", fields = ["license"], how = "heard" }]
[[models]]
id = "org/other"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "mlxengine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setenv("MLXENGINE_CONFIG", str(path))
        return path

    return write


def test_everything_that_it_may_hold_is_read(write) -> None:
    path = write(FULL)
    found = load_settings()
    assert (found.path, found.model) == (path, "org/name@main")
    assert dict(found.features) == {"llm.kv_bits": 4, "llm.prompt_cache": False, "vlm.prefill": "fast"}
    assert (found.hub.endpoint, found.hub.offline) == ("https://hub.example", True)
    assert found.hub.cache_dir == Path("~/models").expanduser()
    assert dict(found.distributions) == {"llm": "mlxengine-llm"}
    assert found.off == {"audio"}
    small, other = found.models
    assert (small.size, small.context_length, small.extra_eos_tokens) == ("135M", 2048, ("<end>",))
    assert small.features == (("llm.kv_bits", 8),)
    assert small.sources == (
        Provenance(checked="2026-11-22", source="https://card.example", fields=("license",), how="heard"),
    )
    assert small.provenance == Provenance(checked="2026-11-22", source="hub", fields=("size",))
    assert (other.id, other.size, other.provenance) == ("org/other", None, None)


def test_without_a_file_everything_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLXENGINE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_path() == tmp_path / "mlxengine" / "mlxengine.toml"
    assert load_settings() == Settings()
    (tmp_path / "mlxengine").mkdir()
    default_path().write_text('model = "org/name"')
    assert load_settings().model == "org/name"


def test_a_named_file_that_is_missing_or_unreadable_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        monkeypatch.setenv("MLXENGINE_CONFIG", str(path))
        with pytest.raises(ConfigurationError, match="cannot be read") as caught:
            load_settings()
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        ("modle = 'a/b'", "Did you mean model"),
        ("[hub]\nendpiont = 'x'", "Did you mean hub.endpoint"),
        ("[hub]\ntoken = 'hf_x'", "HF_TOKEN"),
        ("model = 5", "model must be a text"),
        ("model = 'no model'", "model: 'no model' is neither"),
        ("[hub]\noffline = 'yes'", "true or false"),
        ("features = 5", "features must be a table"),
        ("[features]\nllm.kv_bits = [4]", "features.llm.kv_bits must be"),
        ("[features]\n'llm.x' = 1\nllm.x = 2", "set twice"),
        ("models = 5", "models must be a list"),
        ("models = [5]", r"models\[1\] must be a table"),
        ("[[models]]\nsize = '1B'", r"models\[1\] has no id"),
        ("[[models]]\nid = 'a/b'\n[[models]]\nid = 'A/b'", r"models\[2\]: the model 'A/b' is listed twice"),
        ("[[models]]\nid = 'a/b'\nsize = 'big'", r"models\[1\]: 'big' is not a model size"),
        ("[[models]]\nid = 'a/b'\nsize = 135", r"models\[1\].size must be a text"),
        ("[[models]]\nid = 'a b'", "neither a repository id"),
        ("[[models]]\nid = 'a/b'\nsise = '1B'", r"Did you mean models\[1\].size"),
        ("[[models]]\nid = 'a/b'\ncontext_length = true", "a whole number"),
        ("[[models]]\nid = 'a/b'\nprovenance = { checked = 1 }", "provenance.checked must be a text"),
        ("[[models]]\nid = 'a/b'\nsources = ['a card']", "sources must hold tables"),
        ("[plugins]\nllm = 5", "plugins.llm must be a text"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_place(write, text: str, words: str) -> None:
    path = write(text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        load_settings()
    assert str(path) in str(caught.value)


def test_the_environment_is_stronger_than_the_file(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(FULL)
    monkeypatch.setenv("MLXENGINE_FEATURES", "llm.kv_bits=8,-llm.prompt_cache")
    environment, file = feature_layers()
    assert (environment.level, file.level) == (Level.ENVIRONMENT, Level.FILE)
    assert environment.values == {"llm.kv_bits": "8", "llm.prompt_cache": False}
    assert file.values["llm.kv_bits"] == 4


def test_the_environment_turns_plugins_off_and_takes_back_what_the_file_did(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(FULL)
    monkeypatch.setenv("MLXENGINE_PLUGINS", "-llm, -my-own")
    assert load_settings().off == {"audio", "llm", "my-own"}
    monkeypatch.setenv("MLXENGINE_PLUGINS", "audio")
    assert load_settings().off == set()
    monkeypatch.delenv("MLXENGINE_CONFIG")
    monkeypatch.setenv("MLXENGINE_PLUGINS", "-llm")
    assert load_settings().off == {"llm"}
    monkeypatch.setenv("MLXENGINE_PLUGINS", "llm=off")
    with pytest.raises(InvalidParameterError, match="no plugin's name"):
        load_settings()


@pytest.mark.parametrize("text", ["kv_bits=4", "llm.kv_bits=", "-llm.kv_bits=4", "LLM.X", "llm kv"])
def test_bad_flags_in_the_environment_are_refused(write, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    write("")
    monkeypatch.setenv("MLXENGINE_FEATURES", text)
    with pytest.raises(InvalidParameterError, match="not a feature flag"):
        feature_layers()
