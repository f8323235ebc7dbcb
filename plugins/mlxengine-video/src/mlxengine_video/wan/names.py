"""What diffusers calls the tensors of the library's networks: a parameter's path to its name in the files."""

from __future__ import annotations

import re
from collections.abc import Callable

Names = Callable[[str], str | None]
"""From a parameter's path to its tensor's name; ``None`` for one that is computed, not stored."""

_TRANSFORMER = (
    (r"^patch_embedding_proj\.", "patch_embedding."),
    (r"^text_embedding_0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding_1\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding_0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding_1\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.", "condition_embedder.time_proj."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"(\.attn\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attn\d)\.o\.", r"\1.to_out.0."),
    (r"\.norm3\.", ".norm2."),  # the two number the norms of a block otherwise
    (r"\.ffn\.fc1\.", ".ffn.net.0.proj."),
    (r"\.ffn\.fc2\.", ".ffn.net.2."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"\.modulation$", ".scale_shift_table"),
)
_TEXT = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.ffn\.gate_proj\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
# What both autoencoders have in common, after the levels were named.
_AUTOENCODER = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(\w+)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.(?:layer_)?0\.", ".norm_out."),
    (r"\.head\.(?:layer_)?2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.residual\.(?:layer_)?0\.", ".norm1."),
    (r"\.residual\.(?:layer_)?2\.", ".conv1."),
    (r"\.residual\.(?:layer_)?3\.", ".norm2."),
    (r"\.residual\.(?:layer_)?6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.resample_(weight|bias)$", r".resample.1.\1"),
    (r"\.(to_qkv|proj)_(weight|bias)$", r".\1.\2"),
)


def transformer(path: str) -> str | None:
    """Of ``WanModel``, which keeps its rotary tables among the parameters."""
    return None if path == "freqs" else _renamed(path, _TRANSFORMER)


def text_encoder(path: str) -> str | None:
    """Of ``T5Encoder``."""
    return _renamed(path, _TEXT)


def autoencoder(blocks: int, *, nested: bool) -> Names:
    """Of the autoencoders.

    Args:
        blocks: residual blocks of a level in the encoder; the decoder has one more.
        nested: whether a level's layers are in a list of their own (2.2), or all levels' in one (2.1).
    """

    def name_of(path: str) -> str | None:
        return _renamed(re.sub(r"^(en|de)coder\.(down|up)samples\.(\d+)\.", level, path), _AUTOENCODER)

    def level(found: re.Match[str]) -> str:
        coder, way, number = found[1], found[2], int(found[3])
        if nested:
            return f"{coder}coder.{way}_blocks.{number}."
        if way == "down":  # diffusers has one list here as well
            return f"{coder}coder.down_blocks.{number}."
        block, layer = divmod(number, blocks + 2)
        inner = f"resnets.{layer}" if layer <= blocks else "upsamplers.0"
        return f"{coder}coder.up_blocks.{block}.{inner}."

    def inside(path: str) -> str | None:
        name = name_of(path)
        return re.sub(r"\.(down|up)samples\.(\d+)\.", layer, name) if name else None

    def layer(found: re.Match[str]) -> str:
        way, number = found[1], int(found[2])
        last = blocks if way == "down" else blocks + 1
        return f".resnets.{number}." if number < last else f".{way}sampler."

    return inside if nested else name_of


def _renamed(path: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, text in pairs:
        path = re.sub(pattern, text, path)
    return path


__all__ = ["Names", "autoencoder", "text_encoder", "transformer"]
