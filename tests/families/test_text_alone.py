"""Seeing families served for text alone: by name, and where a conversion has left the encoders out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import GenerateParams, InferenceEngine, ModelConfiguration
from vlm_checkpoints import lay_out, write_tokenizer

CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "plugins" / "mlxengine-llm" / "tests" / "architectures.json").read_text()
)

EITHER = (
    "<bos>{% for m in messages %}{% if m.content is string %} {{ m.content }}"
    "{% else %}{% for c in m.content %} {{ c.text }}{% endfor %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[InferenceEngine]:
    with InferenceEngine() as made:
        yield made


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_both_plugins_answer_a_text_alike(kind: str, engine: InferenceEngine, tmp_path: Path) -> None:
    folder, said = lay_out(kind, tmp_path / kind), []
    for plugin in ("vlm", "llm"):
        asked = ModelConfiguration(id=str(folder), plugin=plugin, chat_template=EITHER)
        with engine.load(asked) as handle:
            assert handle.plugin == plugin
            params = GenerateParams(max_tokens=8, temperature=0.0, ignore_eos=True)
            said.append(handle.generate("w20 w31 w44", params).text)
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", ["gemma3n", "gemma4"])
def test_a_conversion_that_kept_its_audio_config_is_loaded_as_a_language_model(
    kind: str, engine: InferenceEngine, tmp_path: Path
) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    config = {"model_type": kind, **CONFIGS[kind], "audio_config": {"model_type": f"{kind}_audio"}}
    config["architectures"] = [f"{kind.title()}ForConditionalGeneration"]
    made, settings = _get_classes(config)
    weights = dict(tree_flatten(made(settings.from_dict(config)).parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path, {}, "<image>")
    with engine.load(str(tmp_path)) as handle:
        assert handle.plugin == "llm"
        assert (
            handle.generate("w20 w31", GenerateParams(max_tokens=4, ignore_eos=True)).usage.completion_tokens
            == 4
        )
