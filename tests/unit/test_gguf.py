"""GGUF files become MLX checkpoints with the same numbers, and what cannot be read is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlxengine._hub.gguf import gguf_directory
from mlxengine.errors import (
    CorruptFileError,
    IncompatibleWeightsError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.gguf import convert_gguf, read_gguf
from mlxengine.toolkit.gguf_support import choose_file

from tests.gguf_files import write_gguf
from tests.hub import weights

TEXT = "The capital of France is Paris. In 2024, 1,234 people visited the museum — twice."


@pytest.fixture(scope="module")
def real() -> Path:
    (path,) = weights.folder_of(weights.SMOLLM2_GGUF).glob("*.gguf")
    return path


def _logits(folder_config: dict[str, Any], tensors: dict[str, Any], ids: list[int]) -> Any:
    """Logits (tokens, vocabulary) of mlx-lm's llama, in fp32, on dense weights."""
    from mlx_lm.models import llama

    bits = folder_config["quantization"]
    dense = {}
    for name, value in tensors.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.scales" in tensors and name.endswith(".weight"):
            settings = bits.get(layer, bits)
            value = mx.dequantize(
                value,
                tensors[f"{layer}.scales"].astype(mx.float32),
                tensors[f"{layer}.biases"].astype(mx.float32),
                group_size=settings["group_size"],
                bits=settings["bits"],
            )
        if not name.endswith((".scales", ".biases")):
            dense[name] = value.astype(mx.float32)
    model = llama.Model(llama.ModelArgs.from_dict(folder_config))
    model.load_weights(list(dense.items()), strict=True)
    return model(mx.array([ids]))[0]


def _reference_weights(path: Path, names: list[str]) -> dict[str, Any]:
    """Tensors by their GGUF names, dequantized block by block from the file's bytes (ggml's definitions)."""
    data = path.read_bytes()
    _, tensors = gguf_directory(lambda start, stop: data[start:stop], len(data), path.name)
    found, offset = {}, len(data) - sum((tensor.nbytes + 31) // 32 * 32 for tensor in tensors)
    assert offset % 32 == 0
    for tensor in tensors:
        raw = np.frombuffer(data, np.uint8, tensor.nbytes, offset)
        offset += (tensor.nbytes + 31) // 32 * 32
        if tensor.name not in names:
            continue
        if tensor.dtype == "F32":
            value = raw.view(np.float32)
        elif tensor.dtype == "Q4_1":
            block = raw.reshape(-1, 20)
            d, m = (block[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
            value = np.concatenate([block[:, 4:] & 15, block[:, 4:] >> 4], 1) * d + m
        else:
            assert tensor.dtype == "Q8_0"
            block = raw.reshape(-1, 34)
            d = block[:, :2].copy().view(np.float16).astype(np.float32)
            value = block[:, 2:].copy().view(np.int8) * d
        found[tensor.name] = value.reshape(tensor.shape)
    return found


def test_repacked_weights_are_the_files_numbers(real: Path) -> None:
    checkpoint = read_gguf(real)
    names = {
        "token_embd.weight": ("model.embed_tokens", 8, None),
        "blk.3.attn_q.weight": ("model.layers.3.self_attn.q_proj", 4, 9),
        "blk.3.attn_k.weight": ("model.layers.3.self_attn.k_proj", 4, 3),
        "blk.3.ffn_down.weight": ("model.layers.3.mlp.down_proj", 4, None),
    }
    reference = _reference_weights(real, list(names))
    for name, (layer, bits, heads) in names.items():
        parts = (checkpoint.weights[f"{layer}.{part}"] for part in ("weight", "scales", "biases"))
        packed, scales, biases = parts
        dense = mx.dequantize(
            packed, scales.astype(mx.float32), biases.astype(mx.float32), group_size=32, bits=bits
        )
        expected = reference[name]
        if heads:  # llama.cpp's permute, undone: rows of a head alternate between its two halves
            expected = expected.reshape(heads, -1, 2, expected.shape[-1]).swapaxes(1, 2)
            expected = expected.reshape(reference[name].shape)
        assert np.abs(np.array(dense) - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_model_says_that_paris_is_the_capital(real: Path) -> None:
    from tokenizers import Tokenizer

    checkpoint = read_gguf(real)
    tokenizer = Tokenizer.from_str(checkpoint.files["tokenizer.json"])
    ids = tokenizer.encode(TEXT).ids
    assert tokenizer.decode(ids) == TEXT
    logits = _logits(checkpoint.config, checkpoint.weights, ids)
    losses = mx.logsumexp(logits[:-1], axis=-1) - mx.take_along_axis(
        logits[:-1], mx.array(ids[1:])[:, None], axis=-1
    ).squeeze(-1)
    paris = next(at for at, token in enumerate(ids) if tokenizer.decode([token]) == " Paris")
    assert tokenizer.decode([int(logits[paris - 1].argmax())]) == " Paris"
    perplexity = float(mx.exp(losses.mean()))
    assert perplexity < 30


def test_digits_are_split_one_by_one(real: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(read_gguf(real).files["tokenizer.json"])
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1


def test_a_converted_folder_is_complete_and_loads_in_mlx_lm(real: Path, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model, load_tokenizer

    convert_gguf(real, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    model, config = load_model(tmp_path / "model", lazy=True)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert model.args.rope_theta == 100000.0
    tokenizer = load_tokenizer(tmp_path / "model")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert tokenizer.decode(prompt).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(FileExistsError):
        convert_gguf(real, tmp_path / "model")


def test_a_failed_conversion_leaves_nothing_behind(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(OSError, match="no space"):
        convert_gguf(real, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_every_floating_tensor_gets_the_type_that_was_asked_for(real: Path) -> None:
    checkpoint = read_gguf(real, dtype=mx.float32)
    assert {str(value.dtype) for value in checkpoint.weights.values()} == {
        "mlx.core.float32",
        "mlx.core.uint32",
    }
    assert checkpoint.config["dtype"] == "float32"


# ---- small files, written here


LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 500000.0,
    "llama.context_length": 512,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "</s>", "<eot>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.eot_token_id": 5,
    "tokenizer.ggml.add_bos_token": True,
}


def _llama_tensors() -> dict[str, Any]:
    mx.random.seed(3)
    shapes = {
        "token_embd": (6, 32),
        "output": (6, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    return {f"{name}.weight": mx.random.normal(shape) for name, shape in shapes.items()}


def test_a_dense_file_keeps_its_bits_and_its_own_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tensors = _llama_tensors()
    checkpoint = read_gguf(write_gguf(tmp_path / "tiny.gguf", LLAMA, tensors))
    assert "quantization" not in checkpoint.config
    assert checkpoint.config["dtype"] == "float32"
    assert checkpoint.config["tie_word_embeddings"] is False
    kept = checkpoint.weights["model.layers.0.mlp.up_proj.weight"]
    assert mx.array_equal(kept, tensors["blk.0.ffn_up.weight"])
    assert Tokenizer.from_str(checkpoint.files["tokenizer.json"]).encode("ab<eot>").ids == [3, 2, 5]
    assert json.loads(checkpoint.files["generation_config.json"])["eos_token_id"] == [4, 5]


def test_llama_3_rotation_factors_become_its_parameters(tmp_path: Path) -> None:
    from mlx_lm.models.rope_utils import Llama3RoPE

    settings = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    metadata = LLAMA | {"llama.embedding_length": 64, "llama.attention.key_length": 64}
    plain = 500000.0 ** (mx.arange(0, 64, 2) / 64)
    factors = Llama3RoPE(64, 4096, base=500000.0, scaling_config=settings)._freqs / plain
    tensors = _llama_tensors() | {"rope_freqs.weight": factors}
    tensors["blk.0.attn_q.weight"] = mx.zeros((256, 32))
    tensors["blk.0.attn_k.weight"] = mx.zeros((128, 32))
    found = read_gguf(write_gguf(tmp_path / "tiny.gguf", metadata, tensors))
    assert found.config["rope_scaling"] == settings
    with pytest.raises(UnsupportedArchitectureError, match="rotation factors"):
        odd = tensors | {"rope_freqs.weight": factors * mx.linspace(1, 2, 32)}
        read_gguf(write_gguf(tmp_path / "odd.gguf", metadata, odd))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    tensors = _llama_tensors()
    path = tmp_path / "tiny.gguf"

    def written(changes: dict[str, Any] | None = None, **settings: Any) -> Path:
        return write_gguf(path, LLAMA | (changes or {}), settings.pop("tensors", tensors), **settings)

    with pytest.raises(UnsupportedArchitectureError, match="'gemma3'"):
        read_gguf(written({"general.architecture": "gemma3"}))
    with pytest.raises(UnsupportedArchitectureError, match="tokenizer 'llama'"):
        read_gguf(written({"tokenizer.ggml.model": "llama"}))
    with pytest.raises(UnsupportedArchitectureError, match="pre-tokenizer 'odd'"):
        read_gguf(written({"tokenizer.ggml.pre": "odd"}))
    with pytest.raises(UnsupportedArchitectureError, match="experts"):
        read_gguf(written({"llama.expert_count": 8}))
    with pytest.raises(UnsupportedArchitectureError, match="'yarn'"):
        read_gguf(written({"llama.rope.scaling.type": "yarn"}))
    with pytest.raises(IncompatibleWeightsError, match=r"1 of IQ4_NL, 1 of MXFP4"):
        read_gguf(written(types={"token_embd.weight": 20, "output.weight": 39}))
    with pytest.raises(IncompatibleWeightsError, match=r"blk\.0\.odd\.weight"):
        read_gguf(written(tensors=tensors | {"blk.0.odd.weight": mx.zeros((32,))}))
    with pytest.raises(ModelNotFoundError):
        read_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.gguf"], "model.gguf"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf", "m-F16.gguf"], "m-Q4_0.gguf"),
        (["m.q8_0.gguf", "m.f16.gguf"], "m.q8_0.gguf"),
        (["m-Q6_K.gguf", "m-Q5_K_S.gguf", "m-Q4_K_M.gguf"], "m-Q4_K_M.gguf"),
        (["m-Q2_K.gguf", "m-Q6_K.gguf"], "m-Q6_K.gguf"),
        (["m-IQ2_XS.gguf", "m-IQ3_M.gguf"], None),
        (["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"], None),
        ([], None),
    ],
)
def test_of_several_files_the_smallest_that_can_be_read_is_chosen(
    names: list[str], chosen: str | None
) -> None:
    assert choose_file(names) == chosen


def test_a_damaged_file_is_a_typed_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", LLAMA, _llama_tensors())
    data = path.read_bytes()
    damaged = {
        "not gguf": b"PK" + data[2:],
        "version": data[:4] + struct.pack("<I", 9) + data[8:],
        "tensor count": data[:8] + struct.pack("<Q", 1 << 60) + data[16:],
        "key count": data[:16] + struct.pack("<Q", 1 << 60) + data[24:],
        "cut header": data[:200],
        "cut tensors": data[:-5000],
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(CorruptFileError):
            read_gguf(path)
            pytest.fail(name)
