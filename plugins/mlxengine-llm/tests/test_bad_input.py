"""Bad models and bad requests: each ends with its typed error, and early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, card_of, raw, text_of, write_tiny
from mlxengine import Fit, GenerateParams, ImagePart, Message, TextRequest
from mlxengine.errors import (
    CorruptFileError,
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    LoadError,
    ModelNotFoundError,
    PromptTooLongError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
    UnsupportedInputError,
)
from mlxengine_llm import plugin as hooks

Edit = Callable[..., Path]


def test_an_unknown_architecture_is_told_from_the_card(edited: Edit) -> None:
    folder = edited(config={"model_type": "llamma", "architectures": ["LlammaForCausalLM"]})
    claim = hooks.claim_model(card_of(folder))
    assert claim is not None
    assert isinstance(claim.problem, UnsupportedArchitectureError)
    assert "llamma" in str(claim.problem)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "architectures": ["BertModel"]},
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]},
        {"model_type": "whisper", "architectures": ["WhisperModel"]},
        {
            "model_type": "idefics3",
            "architectures": ["Idefics3ForConditionalGeneration"],
            "vision_config": {},
        },
    ],
)
def test_what_is_no_language_model_is_declined(edited: Edit, config: dict[str, Any]) -> None:
    assert hooks.claim_model(card_of(edited(config=config))) is None


def test_an_embedding_model_on_a_known_architecture_is_declined(edited: Edit) -> None:
    assert hooks.claim_model(card_of(edited(modules={"0": {}}))) is None


def test_a_model_that_also_sees_is_only_a_fallback(edited: Edit) -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": {},
    }
    claim = hooks.claim_model(card_of(edited(config=config)))
    assert claim is not None
    assert claim.fit is Fit.FALLBACK


def test_an_alias_of_an_architecture_is_known_without_importing_the_library(edited: Edit) -> None:
    claim = hooks.claim_model(card_of(edited(config={"model_type": "mistral"})))
    assert claim is not None
    assert claim.problem is None


def test_a_quantization_that_the_library_ignores_is_refused_before_the_download(edited: Edit) -> None:
    folder = edited(config={"quantization_config": {"quant_method": "bitsandbytes"}})
    claim = hooks.claim_model(card_of(folder))
    assert claim is not None
    assert isinstance(claim.problem, IncompatibleWeightsError)


def test_pickled_weights_are_refused_before_the_download(edited: Edit) -> None:
    folder = edited()
    folder.joinpath("model.safetensors").rename(folder / "pytorch_model.bin")
    claim = hooks.claim_model(card_of(folder))
    assert claim is not None
    assert isinstance(claim.problem, IncompatibleWeightsError)


def test_code_of_the_repository_is_refused_unless_it_is_trusted(edited: Edit) -> None:
    folder = edited(config={"model_file": "modelling.py", "model_type": "own"})
    claim = hooks.claim_model(card_of(folder))
    assert claim is not None
    assert isinstance(claim.problem, RemoteCodeRefusedError)
    trusted = hooks.claim_model(card_of(folder, trust_remote_code=True))
    assert trusted is not None
    assert trusted.problem is None


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import mlx.core as mx

    file = str(folder / "model.safetensors")
    weights = dict(mx.load(file))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(file, weights)


def test_a_missing_tensor_is_named(plugin: Plugin, edited: Edit) -> None:
    folder = edited()
    _rewrite(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(IncompatibleWeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        plugin.load(folder)


def test_an_unexpected_tensor_is_named(plugin: Plugin, edited: Edit) -> None:
    folder = edited()
    _rewrite(folder, lambda weights: weights.update(surprise=weights["model.norm.weight"]))
    with pytest.raises(IncompatibleWeightsError, match="surprise"):
        plugin.load(folder)


def test_a_tensor_of_the_wrong_shape_is_named(plugin: Plugin, edited: Edit) -> None:
    with pytest.raises(IncompatibleWeightsError, match=r"shape .* for parameter model\.layers"):
        plugin.load(edited(config={"intermediate_size": 48}))


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_weight_file_is_corrupt(plugin: Plugin, edited: Edit, keep: int) -> None:
    folder = edited()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        plugin.load(folder)


def test_a_shard_that_the_index_names_must_be_there(plugin: Plugin, edited: Edit) -> None:
    folder = edited(**{"model.safetensors.index": {"weight_map": {"x": "model-00002-of-00002.safetensors"}}})
    with pytest.raises(IncompatibleWeightsError, match="model-00002-of-00002"):
        plugin.load(folder)


def test_a_configuration_that_breaks_off_is_corrupt(plugin: Plugin, edited: Edit) -> None:
    from mlxengine import Device, LoadContext

    folder = edited()
    card = card_of(folder)
    folder.joinpath("config.json").write_text('{"model_type": ')
    context = LoadContext(
        path=folder, configuration=card.configuration, features=plugin.features(), device=Device.detect()
    )
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        hooks.load_model(card, context)


def test_a_missing_tokenizer_is_a_load_error(plugin: Plugin, edited: Edit) -> None:
    folder = edited()
    folder.joinpath("tokenizer.json").unlink()
    with pytest.raises(LoadError, match="tokenizer"):
        plugin.load(folder)


def test_an_end_token_that_does_not_exist_is_refused(plugin: Plugin, tiny: Path) -> None:
    with pytest.raises(LoadError, match="<never>"):
        plugin.load(tiny, extra_eos_tokens=("<never>",))


def test_a_prompt_longer_than_the_context_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, context_length=50)
    with pytest.raises(PromptTooLongError, match=r"50"):
        plugin.answer(model, raw("x" * 50))
    (events,) = plugin.run([plugin.start(model, raw("x" * 47, max_tokens=100, ignore_eos=True))])
    assert events[-1].usage.total_tokens == 50
    assert events[-1].reason == "context"


def test_an_empty_prompt_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    with pytest.raises(InvalidParameterError, match="empty"):
        plugin.answer(model, raw(""))
    with pytest.raises(InvalidParameterError, match="empty"):
        plugin.answer(model, TextRequest(prompt_tokens=[]))
    with pytest.raises(InvalidParameterError, match="empty"):
        plugin.answer(model, TextRequest(messages=(Message.user(""),)))


def test_a_picture_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    with pytest.raises(UnsupportedInputError, match="image"):
        plugin.answer(model, TextRequest(messages=(Message.user([ImagePart("a.png"), "What?"]),)))


def test_messages_need_a_chat_template_and_a_given_one_is_used(plugin: Plugin, edited: Edit) -> None:
    folder = edited(tokenizer_config={"chat_template": None})
    request = TextRequest(messages=(Message.user("Hi"),), params=GenerateParams(max_tokens=2))
    with pytest.raises(UnsupportedInputError, match="chat template"):
        plugin.answer(plugin.load(folder), request)
    model = plugin.load(folder, chat_template="{% for m in messages %}{{ m.content }}!{% endfor %}")
    (events,) = plugin.run([plugin.start(model, request)])
    assert events[-1].usage.prompt_tokens == len("Hi!")


@pytest.mark.feature("llm.tokenizer")
def test_a_tokenizer_of_the_callers_own_is_used(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", template="{% for m in messages %}<{{ m.content }}>{% endfor %}")
    words = json.loads(other.joinpath("tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    other.joinpath("tokenizer.json").write_text(json.dumps(words))
    other.joinpath("model.safetensors").unlink()
    plain, model = plugin.load(tiny), plugin.load(tiny, flags={"tokenizer": str(other)})
    said = {"max_tokens": 12, "ignore_eos": True}
    swapped = str.maketrans("ab", "ba")
    assert plugin.text(model, "abba", **said) == plugin.text(plain, "baab", **said).translate(swapped)
    request = TextRequest(messages=(Message.user("Hi"),), params=GenerateParams(max_tokens=2))
    (events,) = plugin.run([plugin.start(model, request)])
    assert events[-1].usage.prompt_tokens == len("<Hi>")
    with pytest.raises(FeatureUnavailableError, match="Load the model"):
        plugin.answer(plain, raw("x"), tokenizer=str(other))
    larger = write_tiny(tmp_path / "larger", extra=["<more>"])
    with pytest.raises(IncompatibleWeightsError, match="260 tokens"):
        plugin.load(tiny, flags={"tokenizer": str(larger)})
    with pytest.raises(ModelNotFoundError):
        plugin.load(tiny, flags={"tokenizer": str(tmp_path / "nowhere")})


def test_a_template_that_reaches_for_the_system_is_stopped(plugin: Plugin, edited: Edit) -> None:
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    folder = edited(tokenizer_config={"chat_template": evil})
    with pytest.raises(UnsupportedInputError, match="template"):
        plugin.answer(plugin.load(folder), TextRequest(messages=(Message.user("Hi"),)))


def test_a_token_id_outside_the_vocabulary_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    for wrong in (-1, 10**6):
        with pytest.raises(InvalidParameterError, match="token id"):
            plugin.answer(model, TextRequest(prompt_tokens=[3, wrong]))
    with pytest.raises(InvalidParameterError, match="logit_bias"):
        plugin.answer(model, raw("x", logit_bias={10**6: 1.0}))


def test_loading_keeps_the_limit_of_open_files(plugin: Plugin, tiny: Path) -> None:
    import subprocess
    import sys

    code = (
        "import resource, sys; before = resource.getrlimit(resource.RLIMIT_NOFILE);"
        "from mlxengine.toolkit.loading import descriptor_limit_kept\n"
        "with descriptor_limit_kept():\n    import mlx_lm.utils\n"
        "after = resource.getrlimit(resource.RLIMIT_NOFILE); sys.exit(before != after)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_plugin_imports_no_model_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mlxengine_llm.plugin as p; p.list_features(); p.list_models();"
        "heavy = {'mlx', 'mlx_lm', 'numpy', 'transformers', 'torch', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_estimate_counts_key_value_heads_not_query_heads(tiny: Path) -> None:
    from mlxengine import TextWorkload

    claim = hooks.claim_model(card_of(tiny))
    assert claim is not None
    assert claim.estimate is not None
    config = json.loads((tiny / "config.json").read_text())
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * 8 * 2
    # caches grow in blocks of 256 tokens
    assert claim.estimate(TextWorkload(context_length=1000, batch=3)).cache == 3 * 1024 * per_token
    assert claim.estimate(TextWorkload()).weights == (tiny / "model.safetensors").stat().st_size


def test_the_models_own_sampling_holds_where_the_request_says_nothing(plugin: Plugin, edited: Edit) -> None:
    sampled = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 7}
    model = plugin.load(edited(generation_config=sampled))
    (events,) = plugin.run([plugin.start(model, raw("x", seed=1, ignore_eos=True))])
    assert events[-1].usage.completion_tokens == 7
    same = plugin.text(model, "x", seed=1, ignore_eos=True, temperature=1.3, max_tokens=7)
    assert text_of(events) == same
    greedy = plugin.load(edited(generation_config={**sampled, "do_sample": False}))
    assert plugin.text(greedy, "x") == plugin.text(greedy, "x", temperature=0, max_tokens=7)


def test_the_models_own_penalty_leaves_an_answer_alone_that_is_asked_to_be_greedy(
    plugin: Plugin, edited: Edit
) -> None:
    plain = plugin.load(edited(generation_config={}))
    penal = plugin.load(edited(generation_config={"repetition_penalty": 9.0}))
    more: dict[str, Any] = {"ignore_eos": True, "max_tokens": 30}
    wanted = plugin.text(plain, "x", **more)
    punished = plugin.text(plain, "x", repetition_penalty=9.0, **more)
    assert punished != wanted
    assert plugin.text(penal, "x", temperature=0, **more) == wanted
    assert plugin.text(penal, "x", **more) == punished
    assert plugin.text(penal, "x", temperature=0, repetition_penalty=9.0, **more) == punished


def test_the_models_own_stop_strings_and_longest_length_count(plugin: Plugin, edited: Edit) -> None:
    plain = plugin.load(edited(generation_config={}))
    text = plugin.text(plain, "x", ignore_eos=True, max_tokens=20)
    stop = next(letter for letter in text if letter.isascii())
    for own in (stop, ["never said", stop]):
        model = plugin.load(edited(generation_config={"stop_strings": own}))
        (events,) = plugin.run([plugin.start(model, raw("x", max_tokens=20))])
        assert (text_of(events), events[-1].stop) == (text[: text.index(stop)], stop)
        assert plugin.text(model, "x", ignore_eos=True, max_tokens=20) == text
    short = plugin.load(edited(generation_config={"max_length": 9}))
    for prompt, longest, count in (("xyz", None, 6), ("xyz" * 4, None, 1), ("xyz", 12, 12)):
        (events,) = plugin.run([plugin.start(short, raw(prompt, ignore_eos=True, max_tokens=longest))])
        assert events[-1].usage.completion_tokens == count


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", {}), ("temperature", "warm"), ("top_k", True), ("max_length", 4.5)],
)
def test_a_default_that_is_no_number_is_named_when_the_model_is_loaded(
    plugin: Plugin, edited: Edit, name: str, value: object
) -> None:
    folder = edited(generation_config={name: value, "do_sample": True})
    with pytest.raises(LoadError, match=f"{name} in generation_config.json"):
        plugin.load(folder)
