"""Converting: what is written loads and answers, its loss is measured, and nothing is converted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, card_of, write_tiny
from mlxengine import InferenceEngine, hub
from mlxengine.cli import main
from mlxengine.errors import ConfigurationError, IncompatibleWeightsError, InvalidParameterError
from mlxengine_llm.convert import convert

pytestmark = pytest.mark.feature("llm.quantization")
TEXT = "a text on which the loss of a conversion is measured, " * 4


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("wide") / "model", hidden_size=128, intermediate_size=256)


@pytest.mark.parametrize(
    ("settings", "worst"),
    [
        ({"bits": 8}, 0.01),
        ({"bits": 4, "group_size": 32}, 1.0),
        ({"mode": "mxfp4"}, 2.0),
        ({"mode": "nvfp4"}, 2.0),
        ({"mode": "mxfp8"}, 1.0),
    ],
    ids=lambda item: "-".join(map(str, item.values())) if isinstance(item, dict) else None,
)
def test_a_quantized_model_loads_answers_and_its_loss_is_told(
    plugin: Plugin, wide: Path, tmp_path: Path, settings: dict[str, Any], worst: float
) -> None:
    made = convert(card_of(wide), wide, tmp_path / "made", text=TEXT, **settings)
    assert made.quality is not None
    assert 0 <= made.quality.kl < worst
    assert made.quality.tokens == len(TEXT) - 1
    assert made.bytes < 0.5 * made.source_bytes
    model = plugin.load(tmp_path / "made")
    assert len(plugin.text(model, "x", max_tokens=5, ignore_eos=True)) > 0
    packed = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    assert packed["mode"] == settings.get("mode", "affine")


@pytest.mark.feature("llm.unpack")
@pytest.mark.skipif(mx.default_device().type == mx.DeviceType.gpu, reason="what is unpacked on a CPU only")
def test_packed_weights_are_unpacked_on_a_cpu_unless_that_is_turned_off(
    plugin: Plugin, wide: Path, tmp_path: Path
) -> None:
    convert(card_of(wide), wide, tmp_path / "made", bits=8)
    dense, packed = (
        plugin.load(tmp_path / "made", flags={"unpack": flag, "prompt_cache": False})
        for flag in (True, False)
    )
    kinds = [type(model.network.layers[0].mlp.up_proj).__name__ for model in (dense, packed)]
    assert kinds == ["Linear", "QuantizedLinear"]
    params = {"max_tokens": 12, "ignore_eos": True}
    assert plugin.text(dense, "x", **params) == plugin.text(packed, "x", **params)


def test_more_bits_lose_less(wide: Path, tmp_path: Path) -> None:
    losses = []
    for bits in (2, 4, 8):
        made = convert(card_of(wide), wide, tmp_path / str(bits), bits=bits, text=TEXT)
        assert made.quality is not None
        losses.append(made.quality.kl)
    assert losses[0] > losses[1] > losses[2] >= 0


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(wide: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    convert(card_of(wide), wide, made, bits=4)
    with pytest.raises(IncompatibleWeightsError, match="already"):
        convert(card_of(made), made, tmp_path / "twice", bits=4)
    with pytest.raises(ConfigurationError, match="exists"):
        convert(card_of(wide), wide, made, bits=4)
    for wrong in ({"bits": 7}, {"bits": 8, "mode": "mxfp4"}, {"bits": 4, "group_size": 48}, {}):
        with pytest.raises(InvalidParameterError):
            convert(card_of(wide), wide, tmp_path / "wrong", **wrong)
    with pytest.raises(InvalidParameterError, match="short"):
        convert(card_of(wide), wide, tmp_path / "short", bits=4, text="x")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["made"]


def test_a_gguf_file_is_repacked_without_loss(smollm2_gguf: Any, tmp_path: Path) -> None:
    """Perplexity of the packed numbers equals that of the same numbers unpacked to fp32."""
    (file,) = smollm2_gguf.folder.glob("*.gguf")
    card = hub.resolve(str(file))
    made = convert(card, file, tmp_path / "made", text="The capital of France is Paris, its river the Seine.")
    assert made.lossless
    assert made.quality is not None
    assert made.quality.perplexity == pytest.approx(made.quality.source_perplexity, rel=1e-4)
    assert made.quality.kl < 1e-5
    with pytest.raises(IncompatibleWeightsError, match="already"):
        convert(card, file, tmp_path / "again", bits=4)


def test_the_verb_converts_and_reports(wide: Path, tmp_path: Path, capsys: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    words = ["convert", str(wide), str(tmp_path / "made"), "--bits", "8", "--report", str(text)]
    assert main(words) == 0
    assert "perplexity" in capsys.readouterr().out
    with InferenceEngine() as engine, engine.load_text(str(tmp_path / "made")) as model:
        assert model.score(TEXT).perplexity > 1
    assert main(words) == 2, "the target exists"


def test_the_verb_gives_one_json_value(wide: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["convert", str(wide), str(tmp_path / "made"), "--bits", "8", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["path"] == str(tmp_path / "made")
    assert 0 < value["bytes"] < value["source_bytes"]
