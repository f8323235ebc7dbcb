"""What loads, what is refused before it loads, and what a caller may replace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlxengine import Fit, TextWorkload
from mlxengine.errors import (
    CorruptFileError,
    IncompatibleWeightsError,
    LoadError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
    UnsupportedInputError,
)
from mlxengine.registry import ModelRegistry
from mlxengine_vlm import plugin as hooks
from vlm_harness import TINY, Plugin, asking, card_of
from vlm_pictures import Thing, draw

GREEN = draw([Thing("triangle", "green")])


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the trained model whose JSON documents were changed: ``edited(config={"key": value})``."""

    def edit(**changes: dict[str, Any]) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(TINY, folder)
        for name, values in changes.items():
            path = folder / f"{name}.json"
            old = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**old, **values}))
        return folder

    return edit


@pytest.mark.feature("vlm.quantization")
@pytest.mark.feature("vlm.unpack")
@pytest.mark.parametrize("dense", [True, False])
def test_a_quantized_checkpoint_still_sees(plugin: Plugin, tiny: Any, tmp_path: Path, dense: bool) -> None:
    folder = tmp_path / "quantized"
    shutil.copytree(TINY, folder)
    network = plugin.load(TINY).network

    def fits(path: str, module: Any) -> bool:
        return (
            hasattr(module, "to_quantized")
            and "vision_model" not in path
            and module.weight.shape[-1] % 64 == 0
        )

    nn.quantize(network, group_size=64, bits=8, class_predicate=fits)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())))
    config = json.loads((TINY / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    model = plugin.load(folder, flags={"unpack": dense})
    packed = [name for name, _ in tree_flatten(model.network.parameters()) if name.endswith(".scales")]
    assert bool(packed) is not dense
    assert plugin.answer(model, asking("What shape is this?", GREEN)).strip() == "triangle"


@pytest.mark.feature("vlm.custom_tokenizers")
def test_a_chat_template_and_end_tokens_of_the_callers_own_are_used(plugin: Plugin) -> None:
    template = (
        "<|im_start|>User:{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>"
        "{% else %}What shape is this?{% endif %}{% endfor %}{% endfor %}<end_of_utterance>\nAssistant:"
    )
    model = plugin.load(TINY, chat_template=template, extra_eos_tokens=("Ġcircle",))
    assert plugin.answer(model, asking("Nonsense!", GREEN)).strip() == "triangle"
    assert plugin.answer(model, asking("Nonsense!", draw([Thing("circle", "red")]))) == ""
    with pytest.raises(LoadError, match="not a token"):
        plugin.load(TINY, extra_eos_tokens=("<|never|>",))
    with pytest.raises(UnsupportedInputError, match="tags"):
        forgetful = plugin.load(TINY, chat_template="<image>{{ messages[0].content[-1].text }}")
        plugin.answer(forgetful, asking("Which?", GREEN, GREEN))


def test_a_claim_is_made_from_the_card_alone(plugin: Plugin, edited: Callable[..., Path]) -> None:
    claim = hooks.claim_model(card_of(TINY))
    assert claim is not None
    assert (claim.kind, claim.fit, claim.problem) == ("vlm", Fit.NATIVE, None)
    assert claim.capabilities == {"text", "vision", "chat"}
    assert claim.estimate is not None
    small = claim.estimate(TextWorkload(context_length=64, size=(64, 64)))
    large = claim.estimate(TextWorkload(context_length=1024, batch=4, size=(1024, 1024)))
    assert 9e6 < small.total < large.total


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "blip-9"}, UnsupportedArchitectureError),
        ({"model_file": "evil.py"}, RemoteCodeRefusedError),
    ],
)
def test_what_can_never_load_is_told_before_the_download(
    change: dict[str, Any], error: type[Exception], edited: Callable[..., Path]
) -> None:
    claim = hooks.claim_model(card_of(edited(config=change)))
    assert claim is not None
    assert isinstance(claim.problem, error)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {"hidden_size": 8}},
        {"model_type": 7, "vision_config": {"hidden_size": 8}},
        {},
    ],
)
def test_models_of_other_kinds_are_declined(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hooks.claim_model(card_of(tmp_path)) is None


def test_weights_that_do_not_fit_are_refused_by_name(plugin: Plugin, edited: Callable[..., Path]) -> None:
    folder = edited()
    tensors = mx.load(str(folder / "model.safetensors"))
    name = next(name for name in tensors if "q_proj" in name)
    missing = {key: value for key, value in tensors.items() if key != name}
    mx.save_safetensors(str(folder / "model.safetensors"), missing)
    with pytest.raises(IncompatibleWeightsError, match="Missing 1 parameters"):
        plugin.load(folder)
    mx.save_safetensors(str(folder / "model.safetensors"), {**tensors, "stray.weight": mx.zeros((2, 2))})
    with pytest.raises(IncompatibleWeightsError, match=r"stray\.weight"):
        plugin.load(folder)
    path = folder / "model.safetensors"
    path.write_bytes((TINY / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CorruptFileError):
        plugin.load(folder)


def test_a_processor_of_the_repositorys_own_code_is_refused(
    plugin: Plugin, edited: Callable[..., Path]
) -> None:
    ran = "raise SystemExit('the code of the repository ran')"
    folder = edited(
        config={"model_type": "phi3_v", "auto_map": {"AutoProcessor": "evil.Evil"}},
        processor_config={"auto_map": {"AutoProcessor": "evil.Evil"}, "processor_class": "Evil"},
        preprocessor_config={"auto_map": {"AutoProcessor": "evil.Evil"}, "processor_class": "Evil"},
        tokenizer_config={"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"},
    )
    (folder / "evil.py").write_text(ran)
    from mlxengine_vlm._processor import load_processor

    with pytest.raises(LoadError):
        load_processor(folder, trust_remote_code=False, chat_template=None)


def test_importing_the_plugin_imports_no_model_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mlxengine_vlm.plugin as p; p.list_features(); p.list_models();"
        "print([n for n in ('mlx', 'mlx_vlm', 'transformers', 'numpy', 'PIL', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_plugins_own_test_passes_here(tmp_path: Path) -> None:
    from mlxengine import Device, SelfTestContext

    checks = hooks.self_test(SelfTestContext(folder=tmp_path, device=Device.detect()))
    assert [check.status for check in checks] == ["ok"]


def test_registry_entries_are_of_this_kind_and_state_only_what_has_a_source() -> None:
    entries = hooks.list_models()
    registry = ModelRegistry(entries)
    ids = [entry.id.casefold() for entry in entries]
    assert len(set(ids)) == len(ids) >= 60
    families = "smolvlm smolvlm2 llava qwen2-vl qwen2.5-vl qwen3-vl paligemma gemma3 fastvlm lfm2-vl idefics3"
    assert {entry.family for entry in entries} >= {*families.split(), "moondream", "gemma4", "qwen3.5"}
    for entry in entries:
        assert entry.kind == "vlm"
        assert entry.parameters
        assert entry.base_model is None or entry.base_model in registry
        for name in ("license", "context_length", "memory_bytes", "parameter_count", "template_notes"):
            assert getattr(entry, name) is None or registry.provenance(entry.id, name), (entry.id, name)
        for source in entry.sources:
            assert source.source.startswith("https://")
    known = [entry for entry in entries if entry.license and entry.parameter_count and entry.provenance]
    assert len(known) >= 60
    ruled = [entry for entry in entries if registry.provenance(entry.id, "image_rules")]
    assert len([entry for entry in ruled if entry.base_model is None]) >= 35
    assert all(entry.image_rules is None or entry in ruled for entry in entries)
