"""Adapters: what mlx-lm computes with them; ``tests/text`` has what holds for other plugins too."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, write_adapter, write_tiny
from mlxengine import GenerateParams, InferenceEngine, LoadAdapterRequest, UnloadAdapterRequest
from sameness import tolerance

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
