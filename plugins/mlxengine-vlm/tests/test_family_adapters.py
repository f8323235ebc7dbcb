"""Adapters at every layer of each family's language model, held to merged weights; scores, to answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from families import FAMILIES, Served
from mlx.utils import tree_unflatten
from mlx_vlm.models.switch_layers import SwitchGLU, SwitchLinear
from mlxengine import (
    GenerateParams,
    LoadAdapterRequest,
    Request,
    ScoreRequest,
    TextDelta,
    TextRequest,
    UnloadAdapterRequest,
)
from mlxengine.errors import LoadError
from mlxengine.toolkit.adapters import Adapters
from mlxengine_vlm._experts import EXPERTS
from mlxengine_vlm._layers import LayerNames

pytestmark = pytest.mark.feature("vlm.lora")
DAILY = ("qwen2_vl", "paligemma", "mllama", "kimi_vl")
PROMPT = [44, 9, 60, 61, 62]


def run(served: Served, *requests: Request, budget_ms: float = 100.0) -> list[Any]:
    streams = [
        served.plugin.start(served.model, item, budget_ms=budget_ms, prompt_cache=False) for item in requests
    ]
    found = served.plugin.run(streams)
    for events in found:
        if isinstance(events[-1], Exception):
            raise events[-1]
    return found


def asked(tokens: list[int], count: int, adapter: str | None = None) -> TextRequest:
    params = GenerateParams(
        max_tokens=count, ignore_eos=True, temperature=0.0, logprobs=True, adapter=adapter
    )
    return TextRequest(prompt_tokens=tokens, params=params)


def said(events: list[Any]) -> tuple[list[int], list[float]]:
    found = [item for event in events if isinstance(event, TextDelta) for item in event.logprobs]
    return [item.token_id for item in found], [item.logprob for item in found]


def write_adapter(network: nn.Module, folder: Path, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """A random adapter of every linear layer and every layer of experts; what it adds to each weight."""
    chance = np.random.default_rng(seed)
    tensors, added = {}, {}
    for path, layer in network.named_modules():
        if not path.startswith("language_model.") or not isinstance(layer, nn.Linear | SwitchLinear):
            continue
        *many, outputs, inputs = layer.weight.shape
        a = chance.normal(size=(*many, inputs, 4)) * 0.1
        b = chance.normal(size=(*many, 4, outputs)) * 0.1
        added[path] = 3.0 * (a @ b).swapaxes(-1, -2)
        if many:  # mlx-lm and mlx-vlm store those of experts the other way round
            a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"] = (
            mx.array(x.astype(np.float32)) for x in (a, b)
        )
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "lora_parameters": {"scale": 3.0, "rank": 4}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return added


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_is_scored_as_it_answers_and_adapted_as_by_merged_weights(name: str, tmp_path: Path) -> None:
    served = Served(name, tmp_path / "model")
    try:
        _check_names(served.model.network)
        _check_scores(served)
        _check_adapters(served, tmp_path)
    finally:
        served.close()


def _check_names(network: nn.Module) -> None:
    """A layer of the language model is found by each library's path; one of another part is refused."""
    named = LayerNames(network)
    for path, layer in network.named_modules():
        if not isinstance(layer, nn.Linear | SwitchLinear):
            continue
        if path.startswith("language_model."):
            inner = path.removeprefix("language_model.").removeprefix("model.")
            for before in (
                "",
                "model.",
                "language_model.model.",
                "model.language_model.",
                "model.text_model.",
            ):
                assert named(f"{before}{inner}") == path
            continue
        for before in ("", "model."):
            with pytest.raises(LoadError, match=re.escape(f"{before}{path}, which is not")):
                named(f"{before}{path}")


def _check_scores(served: Served) -> None:
    """Of one token of prompt, of which a network that looks in both directions sees no more than a score."""
    tokens, drawn = said(run(served, asked([44], 30))[0])
    media = served.model.media_tokens
    end = next((at for at, token in enumerate(tokens) if token in media), len(tokens))
    assert end >= 4
    text = [44, *tokens[:end]]
    for budget_ms in (0.001, 1000.0):  # a token at a time, and whole
        (events,) = run(served, ScoreRequest(tokens=text), budget_ms=budget_ms)
        assert events[0].logprobs == pytest.approx(drawn[:end], abs=1e-4)
        assert events[0].greedy
    many = [text, text[:4], [*text[:3], 9], PROMPT]
    alone = [run(served, ScoreRequest(tokens=item))[0][0].logprobs for item in many]
    together = sorted(run(served, ScoreRequest(tokens=many))[0][:-1], key=lambda event: event.index)
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other, abs=1e-4)


def _check_adapters(served: Served, folder: Path) -> None:
    added = {
        name: write_adapter(served.model.network, folder / name, seed) for name, seed in (("a", 3), ("b", 4))
    }
    requests = [asked(PROMPT[at % 2 :], 8, name) for at, name in enumerate(("a", "b", "base", "b", "a"))]
    base = run(served, asked(PROMPT, 8))[0]
    for name in added:
        run(served, LoadAdapterRequest(name=name, source=str(folder / name)))
    found = [said(events) for events in run(served, *requests)]
    for name in added:
        run(served, UnloadAdapterRequest(name=name))
    assert said(run(served, asked(PROMPT, 8))[0]) == said(base), "no trace is left"
    network = served.model.network
    layers = dict(network.named_modules())
    kept = {path: layers[path].weight for path in added["a"]}
    for name in ("a", "b", "base"):
        with served.plugin.backend.stream():
            for path, weight in kept.items():
                change = added.get(name, {}).get(path, 0.0)
                layers[path].weight = weight + mx.array(change, dtype=mx.float32)
            mx.eval(network.parameters())
        for request, (tokens, logprobs) in zip(requests, found, strict=True):
            if request.params.adapter == name:
                plain = TextRequest(prompt_tokens=request.prompt_tokens, params=asked([1], 8).params)
                wanted = said(run(served, plain)[0])
                assert tokens == wanted[0]
                assert logprobs == pytest.approx(wanted[1], abs=1e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl_moe"])
def test_an_adapter_beside_packed_weights_computes_what_it_does_beside_what_they_stand_for(
    name: str, tmp_path: Path
) -> None:
    served = Served(name, tmp_path / "model")
    network, options = served.model.network, {"group_size": 32, "bits": 8}
    added = write_adapter(network, tmp_path / "a", 3)
    whole = dict(network.named_modules())
    with served.plugin.backend.stream():
        packed = {path: whole[path].to_quantized(**options) for path in added}
        network.update_modules(tree_unflatten(list(packed.items())))
    run(served, LoadAdapterRequest(name="a", source=str(tmp_path / "a")))
    found = said(run(served, asked(PROMPT, 8, "a"))[0])
    scores = run(served, ScoreRequest(tokens=PROMPT * 3, adapter="a"))[0][0].logprobs
    run(served, UnloadAdapterRequest(name="a"))
    with served.plugin.backend.stream():
        for path, layer in packed.items():
            plain = mx.dequantize(layer.weight, layer.scales, layer.biases, **options)
            whole[path].weight = plain + mx.array(added[path], dtype=mx.float32)
        network.update_modules(tree_unflatten([(path, whole[path]) for path in added]))
        mx.eval(network.parameters())
    wanted = said(run(served, asked(PROMPT, 8))[0])
    assert found[0] == wanted[0]
    assert found[1] == pytest.approx(wanted[1], abs=1e-4)
    assert scores == pytest.approx(run(served, ScoreRequest(tokens=PROMPT * 3))[0][0].logprobs, abs=1e-4)
    served.close()


@pytest.mark.parametrize("flat", [False, True], ids=["rows", "flattened"])
@pytest.mark.parametrize("length", [1, 3, 40], ids=["decoding", "some", "sorted"])
def test_a_block_that_sums_its_experts_itself_gives_each_row_its_own_adapter(
    tmp_path: Path, length: int, flat: bool
) -> None:
    network = nn.Module()
    network.language_model = SwitchGLU(16, 32, 4)
    mx.eval(network.parameters())
    adapters = Adapters(network, EXPERTS)
    for name, seed in (("a", 3), ("b", 4)):
        write_adapter(network, tmp_path / name, seed)
    for name in ("a", "b"):
        adapters.load(name, tmp_path / name)
    names = ("a", None, "b", "a")
    x, shared = (mx.random.normal((4, length, 16), key=mx.random.key(seed)) for seed in (1, 2))
    experts = mx.random.randint(0, 4, (4, length, 2), key=mx.random.key(3))
    weights = mx.random.uniform(shape=(4, length, 2), key=mx.random.key(4))
    given = (x, experts, weights, shared)
    alone = []
    for at, name in enumerate(names):
        adapters.use(name)
        alone.append(network.language_model(*(part[at : at + 1] for part in given)))
    wanted = mx.concatenate(alone)
    adapters.use(*names)
    if flat:
        given, wanted = tuple(part.reshape(-1, part.shape[-1]) for part in given), wanted.reshape(-1, 16)
    found = network.language_model(*given)
    assert mx.abs(found - wanted).max().item() < 1e-5
    assert mx.abs(alone[0] - alone[3]).max().item() > 0.1
