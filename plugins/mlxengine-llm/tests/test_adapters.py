"""Adapters: what mlx-lm computes with them, per request, and no trace when they are gone."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlxengine_llm.plugin
import pytest
from llm_harness import Plugin, passes, raw, tokens_of, write_adapter, write_tiny
from mlxengine import GenerateParams, InferenceEngine, LoadAdapterRequest, UnloadAdapterRequest
from mlxengine.errors import (
    CorruptFileError,
    IncompatibleWeightsError,
    InvalidParameterError,
    LoadError,
    ModelNotFoundError,
)
from sameness import check_same, tolerance

pytestmark = pytest.mark.feature("llm.lora")
PROMPT = "a prompt to adapt"


def as_peft(source: Path, folder: Path, *, dora: bool) -> Path:
    """The same adapter in PEFT's format."""
    found: dict[str, mx.array] = {}
    for name, value in mx.load(str(source / "adapters.safetensors")).items():
        path, leaf = name.rsplit(".", 1)
        ours = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}[leaf]
        found[f"base_model.model.{path}.{ours}"] = value if leaf == "m" else mx.contiguous(value.T)
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), found)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "use_dora": dora}
    folder.joinpath("adapter_config.json").write_text(json.dumps(config))
    return folder


def change(plugin: Plugin, model: Any, request: Any) -> None:
    (events,) = plugin.run([plugin.start(model, request)])
    if isinstance(events[-1], Exception):
        raise events[-1]


def logits(plugin: Plugin, model: Any, adapter: str | None) -> mx.array:
    with plugin.backend.stream():
        model.adapters.use(adapter)
        found = model.network(mx.array([model.tokenizer.encode(PROMPT)]))
        mx.eval(found)
    return found


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("peft", [False, True], ids=["mlx-lm", "peft"])
def test_logits_are_those_of_mlx_lm_and_come_back_bit_for_bit(
    plugin: Plugin, tiny: Path, tmp_path: Path, dora: bool, peft: bool
) -> None:
    wanted = write_adapter(tmp_path / "own", tiny, dora=dora)
    folder = as_peft(tmp_path / "own", tmp_path / "peft", dora=dora) if peft else tmp_path / "own"
    model = plugin.load(tiny)
    before = logits(plugin, model, None)
    change(plugin, model, LoadAdapterRequest(name="a", source=str(folder)))
    adapted = logits(plugin, model, "a")
    other = wanted(mx.array([model.tokenizer.encode(PROMPT)]))
    assert mx.abs(adapted - other).max().item() < tolerance()
    assert mx.abs(adapted - before).max().item() > 0.1
    assert mx.array_equal(logits(plugin, model, None), before)
    change(plugin, model, UnloadAdapterRequest(name="a"))
    assert mx.array_equal(logits(plugin, model, None), before)
    assert not [name for name, _ in model.network.named_modules() if name.endswith(".base")]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "lora-and-dora"])
def test_two_adapters_and_the_base_in_one_batch_equal_their_solo_runs(
    plugin: Plugin, tiny: Path, tmp_path: Path, dora: bool
) -> None:
    model = plugin.load(tiny)
    for name, seed in (("a", 3), ("b", 4)):
        write_adapter(
            tmp_path / name, tiny, seed=seed, dora=dora and name == "b", rank=4 if name == "a" else 6
        )
        change(plugin, model, LoadAdapterRequest(name=name, source=str(tmp_path / name)))
    requests = [
        raw(PROMPT * 3, max_tokens=24, ignore_eos=True, adapter=adapter, top_logprobs=2)
        for adapter in ("a", None, "b", "base", "a")
    ]
    alone = [plugin.run([plugin.start(model, item, prompt_cache=False)])[0] for item in requests]
    assert len({tuple(tokens_of(events)) for events in alone}) == 3
    seen = passes(model, plugin)
    for _ in range(2):  # the second time from the prompt caches, which are each adapter's own
        found = plugin.run([plugin.start(model, request) for request in requests])
        for one, other in zip(found, alone, strict=True):
            check_same(one, other)
    assert max(rows for rows, _ in seen) >= 4, "in one batch"


def test_the_scale_of_an_adapter_can_be_chosen(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny)
    model = plugin.load(tiny)
    change(plugin, model, LoadAdapterRequest(name="off", source=str(tmp_path / "a"), scale=0))
    change(plugin, model, LoadAdapterRequest(name="on", source=str(tmp_path / "a")))
    assert mx.abs(logits(plugin, model, "off") - logits(plugin, model, None)).max().item() < 1e-6
    assert mx.abs(logits(plugin, model, "on") - logits(plugin, model, None)).max().item() > 0.1


def test_a_model_loaded_with_an_adapter_uses_it_unless_asked_for_the_base(
    plugin: Plugin, tiny: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", tiny)
    plain, adapted = plugin.load(tiny), plugin.load(tiny, adapter=str(tmp_path / "a"))
    base = plugin.text(plain, PROMPT, max_tokens=12, ignore_eos=True)
    assert plugin.text(adapted, PROMPT, max_tokens=12, ignore_eos=True) != base
    assert plugin.text(adapted, PROMPT, max_tokens=12, ignore_eos=True, adapter="base") == base


def test_an_adapter_of_another_model_is_refused_by_name(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny)
    file = tmp_path / "a" / "adapters.safetensors"
    weights = dict(mx.load(str(file)))
    name = "model.layers.0.self_attn.q_proj.lora_a"
    weights[name] = mx.zeros((48, 4))
    mx.eval(weights)
    mx.save_safetensors(str(file), weights)
    model = plugin.load(tiny)
    with pytest.raises(IncompatibleWeightsError, match=r"layers\.0\.self_attn\.q_proj maps 32 to 32"):
        change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "a")))
    assert model.adapters.names == ()
    weights.pop(name)
    mx.save_safetensors(str(file), weights)
    with pytest.raises((IncompatibleWeightsError, CorruptFileError)):
        change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "a")))


def test_what_is_no_adapter_and_what_is_not_loaded_is_refused(
    plugin: Plugin, tiny: Path, tmp_path: Path
) -> None:
    model = plugin.load(tiny)
    with pytest.raises(ModelNotFoundError):
        change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "nowhere")))
    with pytest.raises(LoadError, match="adapter_config"):
        change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path)))
    with pytest.raises(InvalidParameterError, match="base"):
        plugin.start(model, raw("x", adapter="a"))
    with pytest.raises(InvalidParameterError):
        change(plugin, model, UnloadAdapterRequest(name="a"))


def test_an_adapter_in_use_is_not_unloaded(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", tiny)
    model = plugin.load(tiny)
    change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "a")))
    stream = plugin.start(model, raw("x", max_tokens=20, adapter="a"))
    with pytest.raises(InvalidParameterError, match="in use"):
        change(plugin, model, UnloadAdapterRequest(name="a"))
    stream.close()
    change(plugin, model, UnloadAdapterRequest(name="a"))


def test_what_was_loaded_beside_the_weights_is_there_again_after_an_eviction(
    tiny: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", tiny)
    write_adapter(tmp_path / "b", tiny, seed=7)
    said = GenerateParams(max_tokens=8, temperature=0.0)
    with InferenceEngine(plugins=[("llm", mlxengine_llm.plugin)]) as engine:
        chat = engine.load_text(tiny)
        plain = chat.generate(PROMPT, said).text

        def evicted() -> str:
            [live] = engine._pool.live()
            assert engine._pool.ledger.evict(live, "for this test")
            return chat.generate(PROMPT, said).text

        chat.load_adapter(str(tmp_path / "a"), "a", default=True)
        chat.load_adapter(str(tmp_path / "b"), "b", scale=0.5)
        adapted = chat.generate(PROMPT, said).text
        assert adapted != plain
        assert evicted() == adapted
        chat.unload_adapter("a")
        assert evicted() == plain
        (tmp_path / "b" / "adapters.safetensors").unlink()
        with pytest.raises(LoadError):  # refused, and not silently without it
            evicted()


def test_an_adapter_of_the_configuration_is_not_loaded_twice(
    plugin: Plugin, tiny: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "a", tiny)
    model = plugin.load(tiny, adapter=str(tmp_path / "a"))
    assert model.adapters.setup() == ()
    change(plugin, model, UnloadAdapterRequest(name="default"))
    assert model.adapters.setup() == (UnloadAdapterRequest(name="default"),)


def test_an_adapter_that_comes_slowly_from_a_hub_stalls_no_other_answer(
    tiny: Path, tmp_path: Path, hub: Any
) -> None:
    write_adapter(tmp_path / "adapter", tiny)
    files = {item.name: item.read_bytes() for item in (tmp_path / "adapter").iterdir()}
    hub.repos.add("org/adapter", files)
    hub.faults.add("delay", "/api/models/", seconds=3.0)
    other = write_tiny(tmp_path / "other", seed=1)
    with InferenceEngine(endpoint=hub.endpoint, cache_dir=tmp_path / "cache") as engine:
        adapted, talking = engine.load_text(tiny), engine.load_text(other)

        def longest_gap(while_alive: threading.Thread) -> float:
            while_alive.start()
            gaps, before = [0.0], time.monotonic()
            while while_alive.is_alive():
                for _ in talking.stream(PROMPT, GenerateParams(max_tokens=20)):
                    gaps.append(time.monotonic() - before)
                    before += gaps[-1]
            return max(gaps)

        quiet = longest_gap(threading.Timer(1.0, lambda: None))
        began = time.monotonic()
        gap = longest_gap(threading.Thread(target=lambda: adapted.load_adapter("org/adapter", "a")))
        assert time.monotonic() - began > 3
        assert gap < quiet + 0.5
        adapted.generate(PROMPT, GenerateParams(adapter="a", max_tokens=2))
