"""GGUF to MLX: tensors, configuration and tokenizer of a llama-family file, without loss.

Blocks of packed numbers are repacked where MLX has a form for them, and unpacked to fp32 where it has none;
nothing is rounded (`_gguf_blocks`). llama.cpp stores the rows of Q and K with the two halves of each head's
rotation interleaved (its ``permute`` in ``convert_hf_to_gguf.py``); that is undone here, on packed rows too.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import field, frozen

from .._hub.gguf import gguf_contents
from ..contract.configuration import TensorInfo
from ..errors import (
    CorruptFileError,
    IncompatibleWeightsError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
)
from ._gguf_blocks import GROUP_SIZE, unpack
from ._gguf_tokenizer import tokenizer_files
from .gguf_support import gguf_problem

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias|scales|biases)")
_ROPE_FACTORS = "rope_freqs.weight"


@frozen(kw_only=True)
class GGUFCheckpoint:
    """A GGUF file as MLX libraries want it.

    Args:
        weights: tensors under their Hugging Face names. A quantized layer has ``.weight`` (uint32, shape
            ``(rows, columns * bits / 32)``), ``.scales`` and ``.biases`` (``(rows, columns / 32)``, fp16, or
            fp32 where they do not fit that).
        config: what ``config.json`` holds, with ``quantization`` where any layer is quantized.
        files: texts of ``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json``.
    """

    weights: dict[str, mx.array] = field(repr=False)
    config: dict[str, Any]
    files: Mapping[str, str] = field(repr=False)

    def write_files(self, folder: Path) -> None:
        """Write the configuration and the tokenizer, but no weights, into an existing folder."""
        texts = {"config.json": json.dumps(self.config, indent=1), **self.files}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def read_gguf(source: Path, *, dtype: mx.Dtype | None = None) -> GGUFCheckpoint:
    """Read a GGUF file of the llama family.

    Args:
        source: the file.
        dtype: floating type of plain tensors, scales and biases. ``None`` keeps the file's numbers: in
            a file that is not all F32, vectors stored as F32 become float16 where that loses nothing.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError: it is not GGUF, or it ends too early.
        UnsupportedArchitectureError: the architecture or the tokenizer is not one that is known here.
        IncompatibleWeightsError: a tensor has a type or a name that is not known here.
    """
    metadata, entries = _contents(source)
    if problem := gguf_problem(metadata, [tensor for _, tensor in entries], source.name):
        raise problem
    files = tokenizer_files(metadata, source.name)
    config = _config(source, metadata)
    data = np.memmap(source, np.uint8, "r")
    weights: dict[str, mx.array] = {}
    for offset, tensor in entries:
        parts = _parts(source, tensor, data[offset : offset + tensor.nbytes])
        if tensor.name == _ROPE_FACTORS:
            config["rope_scaling"] = _llama3_scaling(source, config, parts["weight"].reshape(-1))
            config["rope_parameters"] |= config["rope_scaling"]
            continue
        stem = tensor.name.removesuffix(".weight")
        for part, value in parts.items():
            name = f"{stem}.{part}" if stem != tensor.name else stem
            weights |= [_named(source, name, value.reshape(*tensor.shape[:-1], -1), config)]
    weights = _cast(weights, dtype)
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    config["dtype"] = str(weights["model.norm.weight"].dtype).removeprefix("mlx.core.")
    bits = _bits(weights)
    if bits:
        usual = Counter(bits.values()).most_common(1)[0][0]
        quantization: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine"}
        for layer, count in bits.items():
            if count != usual:
                quantization[layer] = {"group_size": GROUP_SIZE, "bits": count, "mode": "affine"}
        config["quantization"] = config["quantization_config"] = quantization
    return GGUFCheckpoint(weights=weights, config=config, files=files)


def convert_gguf(source: Path, folder: Path, *, dtype: mx.Dtype | None = None) -> None:
    """Write a GGUF file as an MLX model folder. The folder appears whole or not at all.

    Raises:
        FileExistsError: the folder is there already.
        MLXEngineError: what `read_gguf` raises.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already.")
    checkpoint = read_gguf(source, dtype=dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        checkpoint.write_files(temporary)
        mx.save_safetensors(str(temporary / "model.safetensors"), checkpoint.weights, {"format": "mlx"})
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _contents(source: Path) -> tuple[dict[str, Any], list[tuple[int, TensorInfo]]]:
    try:
        with source.open("rb") as stream:

            def read(start: int, stop: int) -> bytes:
                stream.seek(start)
                return stream.read(stop - start)

            return gguf_contents(read, source.stat().st_size, source.name)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {source}.", hint="Check the path.") from error


def _parts(source: Path, tensor: TensorInfo, data: Any) -> dict[str, mx.array]:
    rows = math.prod(tensor.shape[:-1])
    try:
        return unpack(tensor.dtype, mx.array(data.reshape(rows, -1)), tensor.shape[-1])
    except ValueError as error:
        raise CorruptFileError(
            f"{source.name}: the rows of {tensor.name!r} are no whole {tensor.dtype} blocks.",
            hint="Fetch it again; if that does not help, the file itself is damaged.",
        ) from error


def _config(source: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"llama.{key}", default)

    required = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
    missing = [key for key in required if value(key) is None]
    if missing:
        raise CorruptFileError(f"{source.name} lacks the metadata {', '.join(missing)}.")
    heads, width = value("attention.head_count"), value("embedding_length")
    head_dim = value("attention.key_length") or width // heads
    if value("rope.dimension_count", head_dim) != head_dim or value("expert_count"):
        raise UnsupportedArchitectureError(
            f"{source.name} is a llama with partial rotation or experts, which is not read from GGUF.",
            hint="Use the model's MLX conversion.",
        )
    scaling = value("rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise UnsupportedArchitectureError(
            f"{source.name} scales its rotation by {scaling!r}, which is not read from GGUF.",
            hint="Use the model's MLX conversion.",
        )
    theta = _short(value("rope.freq_base", 10000.0))
    tokens = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": width,
        "num_hidden_layers": value("block_count"),
        "intermediate_size": value("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _short(value("attention.layer_norm_rms_epsilon", 1e-5)),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": value("context_length", 2048),
        # transformers 5 reads rope_parameters, most of mlx-lm only the flat name
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "bos_token_id": tokens["bos"],
        "eos_token_id": tokens["eos"],
        "pad_token_id": tokens["padding"],
    }


def _short(value: float) -> float:
    """The decimal number that a float32 stands for: 9.99999975e-06 was written as 1e-05."""
    return float(f"{value:.7g}")


def _llama3_scaling(source: Path, config: dict[str, Any], factors: mx.array) -> dict[str, Any]:
    """The Llama 3 rotation parameters that give the frequency factors which the file stores.

    The file holds only the result (one divisor per frequency). Llama 3's constants are tried, and
    accepted if they give the same divisors.
    """
    found: list[float] = factors.astype(mx.float32).tolist()  # type: ignore[assignment]
    factor, low, high, original = max(found), 1.0, 4.0, 8192
    half = config["head_dim"] // 2

    def expected(index: int) -> float:
        wavelength = 2 * math.pi * float(config["rope_theta"] ** (index / half))
        if wavelength < original / high:
            return 1.0
        if wavelength > original / low:
            return factor
        smooth = (original / wavelength - low) / (high - low)
        return 1 / ((1 - smooth) / factor + smooth)

    if len(found) != half or any(abs(expected(i) / item - 1) > 1e-4 for i, item in enumerate(found)):
        raise UnsupportedArchitectureError(
            f"{source.name} stores rotation factors that are not Llama 3's.",
            hint="Use the model's MLX conversion.",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _named(source: Path, name: str, value: mx.array, config: dict[str, Any]) -> tuple[str, mx.array]:
    match = _TENSOR.fullmatch(name)
    stem = _NAMES.get(match[2]) if match else None
    if match is None or stem is None:
        raise IncompatibleWeightsError(
            f"{source.name} has a tensor {name!r} that no llama has.", hint="Use the MLX conversion."
        )
    if match[2] in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if match[2] == "attn_q" else "num_key_value_heads"]
        value = value.reshape(heads, -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    prefix = f"model.layers.{match[1]}." if match[1] else ""
    return f"{prefix}{stem}.{match[3]}", value


def _cast(weights: dict[str, mx.array], dtype: mx.Dtype | None) -> dict[str, mx.array]:
    def floating(value: mx.array) -> bool:
        return bool(mx.issubdtype(value.dtype, mx.floating))

    if dtype is not None:
        return {name: value.astype(dtype) if floating(value) else value for name, value in weights.items()}
    wide = {name: value for name, value in weights.items() if value.dtype == mx.float32}
    if len(wide) < len(weights):
        narrow = {name: value.astype(mx.float16) for name, value in wide.items()}
        exact = [mx.array_equal(narrow[name].astype(mx.float32), value) for name, value in wide.items()]
        if mx.all(mx.stack(exact)).item() if exact else False:
            return weights | narrow
    return weights


def _bits(weights: dict[str, mx.array]) -> dict[str, int]:
    """Bits of each quantized layer, by its name."""
    scales = {name.removesuffix(".scales"): value for name, value in weights.items() if ".scales" in name}
    return {
        layer: weights[f"{layer}.weight"].shape[-1] * 32 // (value.shape[-1] * GROUP_SIZE)
        for layer, value in scales.items()
    }


__all__ = ["GROUP_SIZE", "GGUFCheckpoint", "convert_gguf", "read_gguf"]
