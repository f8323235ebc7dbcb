"""Blocks of packed numbers become the numbers that the ``gguf`` package makes of them, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlxengine._hub.gguf import gguf_contents
from mlxengine.errors import CorruptFileError
from mlxengine.toolkit._gguf_blocks import KINDS, unpack
from mlxengine.toolkit.gguf import read_gguf

from tests.gguf_files import packed_k, write_gguf
from tests.hub import weights
from tests.unit.make_gguf_reference import BLOCKS, COLUMNS, PATH, reference

REPACKED = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q8_0": 8}
DOWN = {f"blk.{layer}.ffn_down.weight": 4 if layer % 2 else 5 for layer in (0, 5, 11, 16, 23, 28)}
TEXT = "The museum of natural history opened in 1864, on a warm day in June; few people came."


def dense(parts: dict[str, Any], bits: int | None) -> Any:
    """The numbers in fp32."""
    if bits is None:
        return parts["weight"].astype(mx.float32)
    scales, biases = (parts[name].astype(mx.float32) for name in ("scales", "biases"))
    return mx.dequantize(parts["weight"], scales, biases, group_size=32, bits=bits)


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_every_type_gives_the_numbers_of_the_gguf_package(kind: str) -> None:
    stored = mx.load(str(PATH))
    assert isinstance(stored, dict)
    parts = unpack(kind, stored[f"{kind}.raw"], COLUMNS)
    assert set(parts) == ({"weight", "scales", "biases"} if kind in REPACKED else {"weight"})
    if kind in REPACKED:
        assert parts["weight"].shape[1] == COLUMNS * REPACKED[kind] // 32
        assert parts["scales"].dtype == (mx.float32 if kind.endswith("K") else mx.float16)
    assert mx.array_equal(dense(parts, REPACKED.get(kind)), stored[f"{kind}.values"])


def test_nothing_else_can_be_read_than_what_is_compared() -> None:
    assert set(BLOCKS) | {"F32", "F16", "BF16"} == KINDS


@pytest.mark.parity
def test_the_stored_numbers_are_those_of_the_gguf_package() -> None:
    stored = mx.load(str(PATH))
    assert isinstance(stored, dict)
    for name, value in reference().items():
        assert np.array_equal(np.array(stored[name]), value), name


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with ``Q4_K`` and ``Q5_K`` in some of the layers whose width allows it; the rest as it is."""
    (source,) = weights.folder_of(weights.SMOLLM2_GGUF).glob("*.gguf")
    data = source.read_bytes()
    metadata, entries = gguf_contents(lambda start, stop: data[start:stop], len(data), source.name)
    numbers = {"F32": 0, "Q4_1": 3, "Q8_0": 8}
    tensors: dict[str, Any] = {}
    for offset, item in entries:
        raw = data[offset : offset + item.nbytes]
        tensors[item.name] = (numbers[item.dtype], item.shape, raw)
        if item.name in DOWN:
            rows = mx.array(np.frombuffer(raw, np.uint8).reshape(item.shape[0], -1))
            values = np.array(dense(unpack(item.dtype, rows, item.shape[1]), 4))
            tensors[item.name] = packed_k(values, DOWN[item.name])
    return write_gguf(tmp_path_factory.mktemp("mixed") / "m-Q4_K_M.gguf", metadata, tensors)


def perplexity(config: dict[str, Any], tensors: dict[str, Any], ids: list[int], packed: list[str]) -> float:
    """Of mlx-lm's llama; the layers that are not named in ``packed`` are unpacked to fp32."""
    import mlx.nn as nn
    from mlx_lm.models import llama

    settings = config["quantization"]
    wanted = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        if f"{layer}.scales" not in tensors or layer in packed:
            wanted[name] = value.astype(mx.float32) if value.dtype == mx.float16 else value
        elif part == "weight":
            parts = {part: tensors[f"{layer}.{part}"] for part in ("weight", "scales", "biases")}
            wanted[name] = dense(parts, settings.get(layer, settings)["bits"])
    network = llama.Model(llama.ModelArgs.from_dict(config))
    usual = {name: settings[name] for name in ("group_size", "bits", "mode")}
    nn.quantize(
        network, class_predicate=lambda path, _: settings.get(path, usual) if path in packed else False
    )
    network.load_weights(list(wanted.items()), strict=True)
    logits = network(mx.array([ids[:-1]]))[0]
    chosen = mx.take_along_axis(logits, mx.array(ids[1:])[:, None], axis=-1)[:, 0]
    return math.exp((mx.logsumexp(logits, axis=-1) - chosen).mean().item())  # type: ignore[arg-type]


def test_the_perplexity_of_repacked_weights_is_that_of_the_same_numbers_in_fp32(mixed: Path) -> None:
    from tokenizers import Tokenizer

    checkpoint = read_gguf(mixed)
    bits = [checkpoint.config["quantization"][f"model.layers.{at}.mlp.down_proj"]["bits"] for at in (0, 16)]
    assert bits == [5, 5]
    scales = checkpoint.weights["model.layers.5.mlp.down_proj.scales"]
    assert (scales.shape, scales.dtype) == ((576, 1536 // 32), mx.float32)
    ids = Tokenizer.from_str(checkpoint.files["tokenizer.json"]).encode(TEXT).ids
    packed = [f"model.layers.{name.split('.')[1]}.mlp.down_proj" for name in DOWN]
    one, other = (perplexity(checkpoint.config, checkpoint.weights, ids, layers) for layers in (packed, []))
    assert one == pytest.approx(other, rel=1e-5)
    (source,) = weights.folder_of(weights.SMOLLM2_GGUF).glob("*.gguf")
    plain = read_gguf(source).weights
    for layer in (0, 5):
        name = f"model.layers.{layer}.mlp.down_proj"
        now, before = (
            dense({part: held[f"{name}.{part}"] for part in ("weight", "scales", "biases")}, bits)
            for held, bits in ((checkpoint.weights, 5 - layer % 2), (plain, 4))
        )
        assert mx.abs(now - before).max().item() < 0.1 * mx.abs(before).max().item()


def test_rows_that_are_not_whole_blocks_are_a_damaged_file(tmp_path: Path) -> None:
    from tests.unit.test_gguf import LLAMA, _llama_tensors

    tensors = _llama_tensors() | {"blk.0.ffn_up.weight": (12, (64, 32), bytes(8 * 144))}
    with pytest.raises(CorruptFileError, match="ffn_up"):
        read_gguf(write_gguf(tmp_path / "odd.gguf", LLAMA, tensors))
