"""Adapters at every layer of every architecture, those of experts too: what mlx-lm computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from architectures import CONFIGS, write_model
from llm_harness import Plugin, card_of, passes, raw, tokens_of, write_adapter
from mlxengine import LoadAdapterRequest, UnloadAdapterRequest
from mlxengine.errors import IncompatibleWeightsError
from mlxengine_llm.convert import convert
from mlxengine_llm.fuse import fuse
from sameness import check_same

pytestmark = pytest.mark.feature("llm.lora")
# mlx-lm itself cannot adapt these: bitnet needs Metal, gemma3n uses weights of layers behind their backs,
# nothing of recurrent_gemma can be frozen; and some layers of afm7 have adapters of a form of their own.
ADAPTED = [name for name in CONFIGS if name not in ("bitnet", "gemma3n", "recurrent_gemma", "afm7")]
DAILY = ("qwen3_moe", "gpt_oss", "llama4", "deepseek_v3")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("mixture") / "model", "qwen3_moe")


def change(plugin: Plugin, model: Any, request: Any) -> None:
    (events,) = plugin.run([plugin.start(model, request)])
    if isinstance(events[-1], Exception):
        raise events[-1]


def logits(plugin: Plugin, model: Any, adapter: str | None, length: int) -> mx.array:
    with plugin.backend.stream():
        model.adapters.use(adapter)
        found = model.network(tokens(length))
        mx.eval(found)
    return found


def tokens(length: int) -> mx.array:
    return mx.array([[5 + (7 * at) % 200 for at in range(length)]])


def apart(one: mx.array, other: mx.array) -> float:
    """The largest difference as a share of the spread."""
    finite = mx.isfinite(other)
    one, other = (mx.where(finite, part, 0.0) for part in (one, other))
    return float((mx.abs(one - other).max() / mx.std(other)).item())


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in ADAPTED]
)
def test_an_adapter_at_every_layer_computes_what_it_does_in_mlx_lm_and_leaves_no_trace(
    plugin: Plugin, tmp_path: Path, name: str
) -> None:
    folder = write_model(tmp_path / name, name)
    wanted = write_adapter(tmp_path / "own", folder, everywhere=True)
    model = plugin.load(folder)
    kinds = [type(module) for module in model.network.modules()]
    for length in (3, 40):  # experts sort their tokens where there are many
        plain = logits(plugin, model, None, length)
        change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "own")))
        adapted = logits(plugin, model, "a", length)
        assert apart(adapted, wanted(tokens(length))) < 1e-3
        assert apart(adapted, plain) > 0.01
        assert mx.array_equal(logits(plugin, model, None, length), plain, equal_nan=True)
        change(plugin, model, UnloadAdapterRequest(name="a"))
        assert mx.array_equal(logits(plugin, model, None, length), plain, equal_nan=True)
    assert [type(module) for module in model.network.modules()] == kinds


def test_rows_of_a_batch_use_their_own_adapters_of_experts(
    plugin: Plugin, mixture: Path, tmp_path: Path
) -> None:
    model = plugin.load(mixture, flags={"prompt_cache": False})
    for name, seed, rank in (("a", 3, 4), ("b", 4, 6)):
        write_adapter(tmp_path / name, mixture, seed=seed, rank=rank, everywhere=True)
        change(plugin, model, LoadAdapterRequest(name=name, source=str(tmp_path / name)))
    asked = [
        raw("a prompt to adapt " * (1 + at), max_tokens=12, ignore_eos=True, adapter=adapter, top_logprobs=2)
        for at, adapter in enumerate(("a", None, "b", "base", "a"))
    ]
    alone = [plugin.run([plugin.start(model, request)])[0] for request in asked]
    seen = passes(model, plugin)
    together = plugin.run([plugin.start(model, request) for request in asked])
    assert max(rows for rows, _ in seen) >= 4, "in one batch"
    for one, other in zip(together, alone, strict=True):
        check_same(one, other)
    assert len({tuple(tokens_of(events)[:4]) for events in alone}) >= 4


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_an_adapter_of_experts_that_are_packed_is_loaded_beside_them(
    plugin: Plugin, mixture: Path, tmp_path: Path, mode: str
) -> None:
    """Scales of mxfp4 are exponents: an adapter that is kept in their format would be nothing."""
    made = convert(card_of(mixture), mixture, tmp_path / "packed", bits=4, mode=mode).path
    wanted = write_adapter(tmp_path / "own", made, everywhere=True)
    model = plugin.load(made, flags={"unpack": False})
    change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "own")))
    assert apart(logits(plugin, model, "a", 40), wanted(tokens(40))) < 1e-3
    with pytest.raises(IncompatibleWeightsError, match="quantized"):
        fuse(made, tmp_path / "own", tmp_path / "merged")
    if mode == "mxfp4":
        return  # unpacked, its weights are rounded to 16 bits
    fuse(made, tmp_path / "own", tmp_path / "merged", dequantize=True)
    assert apart(logits(plugin, plugin.load(tmp_path / "merged"), None, 40), wanted(tokens(40))) < 1e-3


def test_an_adapter_of_other_experts_is_refused_by_name(
    plugin: Plugin, mixture: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "own", mixture, everywhere=True)
    file = tmp_path / "own" / "adapters.safetensors"
    weights = dict(mx.load(str(file)))
    path = "model.layers.0.mlp.switch_mlp.up_proj"
    sizes = {leaf: weights[f"{path}.{leaf}"].shape for leaf in ("lora_a", "lora_b")}
    model = plugin.load(mixture)
    for changed in (
        {leaf: mx.zeros((shape[0] + 1, *shape[1:])) for leaf, shape in sizes.items()},
        {"lora_a": mx.zeros((sizes["lora_a"][2], 4)), "lora_b": mx.zeros((4, sizes["lora_b"][1]))},
    ):
        mx.eval(weights, changed)
        mx.save_safetensors(
            str(file), {**weights, **{f"{path}.{leaf}": value for leaf, value in changed.items()}}
        )
        with pytest.raises(IncompatibleWeightsError, match=path.replace(".", r"\.")):
            change(plugin, model, LoadAdapterRequest(name="a", source=str(tmp_path / "own")))
    assert model.adapters.names == ()
