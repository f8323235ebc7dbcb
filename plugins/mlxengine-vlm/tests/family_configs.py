"""Tiny configurations of mlx-vlm's families, and media as their processors would hand them over.

A family's media are arrays of random numbers, so no processor is needed and every picture is as large as it
has to be for a few tokens. ``FAMILIES`` is in the order of how much the families are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

PARITY = Path(__file__).parent / "parity"
REFERENCES, CHECKPOINTS = (
    json.loads((PARITY / f"{name}.json").read_text("utf-8")) for name in ("references", "checkpoints")
)
VOCABULARY, IMAGE = 120, 7

Arrays = dict[str, Any]
Media = Callable[[list[np.random.Generator]], Arrays]
"""Makes the arrays of so many pictures, one from each generator."""


@frozen(kw_only=True)
class Family:
    """What a family's tiny model is and takes.

    Args:
        config: as in ``config.json``.
        tokens: placeholders of one picture.
        media: makes arrays of pictures.
        before, after: tokens around a picture.
        first: pictures come before everything else.
        placeholder: the token that stands for a picture.
        index: the array that says where the pictures' features go, shape (1, pictures, tokens).
    """

    config: dict[str, Any]
    tokens: int
    media: Media
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    first: bool = False
    placeholder: int = IMAGE
    index: str | None = None

    def prompt(self, text: list[int], *pictures: int) -> tuple[list[int], Arrays]:
        """Token ids and arrays of a prompt that shows the pictures of such seeds, then says the text."""
        shown = [*self.before, *[self.placeholder] * self.tokens, *self.after]
        begin = [*shown * len(pictures), 1] if self.first else [1, *shown * len(pictures)]
        ids = [*begin, 20, 31, *text]
        if not pictures:
            return ids, {}
        made = self.media([np.random.default_rng(seed) for seed in pictures])
        if self.index:
            places = np.flatnonzero(np.array(ids) == self.placeholder)
            made[self.index] = places.reshape(1, len(pictures), self.tokens)
        return ids, made


def _noise(rng: np.random.Generator, *shape: int) -> Any:
    return rng.uniform(-1, 1, shape).astype(np.float32)


def squares(*lead: int, side: int = 32) -> Media:
    """Pictures of 32 × 32 pixels, behind each other: shape (*lead, pictures, 3, 32, 32)."""

    def made(rngs: list[np.random.Generator]) -> Arrays:
        pixels = np.concatenate([_noise(rng, 1, 3, side, side) for rng in rngs])
        return {"pixel_values": pixels.reshape(*lead, *pixels.shape)}

    return made


def patches(width: int, *grid: int, name: str = "image_grid_thw", shape: tuple[int, ...] = ()) -> Media:
    """Flat patches of pictures, shape (patches, width), and how many they are in time, height and width."""

    def made(rngs: list[np.random.Generator]) -> Arrays:
        count = int(np.prod(grid))
        pixels = np.concatenate([_noise(rng, count, width) for rng in rngs])
        if shape:
            pixels = pixels.reshape(shape)
        return {"pixel_values": pixels, name: np.array([grid] * len(rngs))}

    return made


def _tiles(rngs: list[np.random.Generator]) -> Arrays:
    """Llama 3.2's: every picture one tile of four at most; each token sees the pictures before it."""
    count = len(rngs)
    pixels = np.zeros((1, count, 4, 3, 16, 16), np.float32)
    pixels[0, :, 0] = np.stack([_noise(rng, 3, 16, 16) for rng in rngs])
    mask = np.zeros((1, count, 4), np.int64)
    mask[..., 0] = 1
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": np.ones((1, count), np.int64),
        "aspect_ratio_mask": mask,
    }


def crops(count: int) -> Media:
    """Pictures of so many crops each, shape (pictures, crops, 3, 32, 32), and their sizes."""

    def made(rngs: list[np.random.Generator]) -> Arrays:
        pixels = np.stack([_noise(rng, count, 3, 32, 32) for rng in rngs])
        return {"pixel_values": pixels, "image_sizes": np.array([[32, 32]] * len(rngs))}

    return made


def _sized(rngs: list[np.random.Generator]) -> Arrays:
    made = squares()(rngs)
    return {**made, "image_sizes": np.array([[32, 32]] * len(rngs))}


def _masked(rngs: list[np.random.Generator]) -> Arrays:
    made = squares(1)(rngs)
    return {**made, "pixel_attention_mask": np.ones((1, len(rngs), 32, 32), np.int64)}


def _lfm2(rngs: list[np.random.Generator]) -> Arrays:
    return {
        "pixel_values": np.stack([_noise(rng, 24, 3 * 64) for rng in rngs]),
        "spatial_shapes": np.array([[4, 6]] * len(rngs)),
        "pixel_attention_mask": np.ones((len(rngs), 24), np.int64),
    }


_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50_000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_HEADS = {**_TEXT, "head_dim": 16}
_VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
_SIGLIP = {**_VISION, "model_type": "siglip_vision_model"}
_CLIP = {**_VISION, "model_type": "clip_vision_model", "projection_dim": 48}
_QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": 8,
    "video_token_index": 8,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
    "vocab_size": VOCABULARY,
}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 48,
    "out_hidden_size": 64,
    "num_heads": 3,
    "intermediate_size": 80,
    "patch_size": 8,
    "image_size": 32,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_MROPE = {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}
_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
}
_MLA = {
    **_TEXT,
    **_EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


def _family(
    kind: str, media: Media, tokens: int, text: Arrays, vision: Arrays, *, flat: bool = False, **more: Any
) -> Family:
    around = {
        name: more.pop(name) for name in ("before", "after", "first", "placeholder", "index") if name in more
    }
    config = {
        **(text if flat else {}),
        "model_type": kind,
        "image_token_index": IMAGE,
        "image_token_id": IMAGE,
        "vocab_size": VOCABULARY,
        "text_config": text,
        "vision_config": vision,
        **more,
    }
    return Family(config=config, tokens=tokens, media=media, **around)


def _stored(kind: str, media: Media, tokens: int, **around: Any) -> Family:
    """A family whose configuration the parity tests have."""
    return Family(config=REFERENCES[kind]["config"], tokens=tokens, media=media, **around)


_AROUND: dict[str, Any] = {"before": (5,), "after": (6,)}
_THW = patches(3 * 2 * 64, 1, 4, 6)

FAMILIES: dict[str, Family] = {
    "qwen2_vl": _stored("qwen2_vl", _THW, 6, **_AROUND),
    "qwen2_5_vl": _stored("qwen2_5_vl", _THW, 6, **_AROUND),
    "qwen3_vl": _stored("qwen3_vl", _THW, 6, **_AROUND),
    "qwen3_vl_moe": _family(
        "qwen3_vl_moe",
        _THW,
        6,
        {
            **_HEADS,
            "model_type": "qwen3_vl_moe_text",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_scaling": _MROPE,
        },
        {
            **_QWEN_VISION,
            "model_type": "qwen3_vl_moe",
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **_QWEN_TOKENS,
        **_AROUND,
    ),
    "qwen3_5": _family(
        "qwen3_5",
        _THW,
        6,
        {
            **_HEADS,
            "model_type": "qwen3_5_text",
            "num_hidden_layers": 4,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "rope_parameters": {
                **_MROPE,
                "mrope_interleaved": True,
                "rope_theta": 50_000.0,
                "partial_rotary_factor": 1.0,
            },
        },
        {
            **_QWEN_VISION,
            "model_type": "qwen3_5",
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [],
        },
        **_QWEN_TOKENS,
        **_AROUND,
    ),
    "gemma3": _stored("gemma3", squares(), 4, **_AROUND),
    "gemma4": _family(
        "gemma4",
        squares(),
        4,
        {
            **_HEADS,
            "model_type": "gemma4_text",
            "num_hidden_layers": 4,
            "global_head_dim": 32,
            "num_global_key_value_heads": 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
        },
        {
            **_VISION,
            "model_type": "gemma4_vision",
            "num_key_value_heads": 3,
            "head_dim": 16,
            "global_head_dim": 16,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
            "default_output_length": 4,
        },
        hidden_size=64,
        audio_token_id=9,
        **_AROUND,
    ),
    "mistral3": _family(
        "mistral3",
        _sized,
        4,
        {**_HEADS, "model_type": "mistral"},
        {**_VISION, "model_type": "pixtral", "head_dim": 16},
        spatial_merge_size=2,
    ),
    "pixtral": _family(
        "pixtral",
        squares(),
        16,
        {**_HEADS, "model_type": "mistral"},
        {**_VISION, "model_type": "pixtral", "head_dim": 16},
    ),
    "llava": _stored("llava", squares(), 16),
    "llava_next": _family("llava_next", crops(2), 36, {**_TEXT, "model_type": "llama"}, _CLIP),
    "llava_onevision": _family(
        "llava_onevision",
        crops(2),
        36,
        {**_TEXT, "model_type": "qwen2"},
        _SIGLIP,
        image_grid_pinpoints=[[32, 32]],
        video_token_index=8,
    ),
    "idefics2": _family(
        "idefics2",
        _masked,
        8,
        {**_TEXT, "model_type": "mistral"},
        {**_VISION, "model_type": "idefics2", "num_key_value_heads": 3},
        perceiver_config={
            "model_type": "idefics2Perceiver",
            "num_key_value_heads": 2,
            "resampler_depth": 1,
            "resampler_head_dim": 16,
            "resampler_n_heads": 4,
            "resampler_n_latents": 8,
        },
    ),
    "idefics3": _stored("idefics3", squares(1), 4),
    "smolvlm": _stored("smolvlm", squares(1), 4),
    "paligemma": _stored("paligemma", squares(), 16, first=True),
    "mllama": _family(
        "mllama",
        _tiles,
        1,
        {**_TEXT, "model_type": "mllama", "cross_attention_layers": [1]},
        {
            "image_size": 16,
            "patch_size": 8,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_num_tiles": 4,
            "num_global_layers": 1,
            "vision_output_dim": 96,
            "intermediate_layers_indices": [0],
        },
    ),
    "llama4": _family(
        "llama4",
        squares(),
        4,
        {
            **_HEADS,
            "model_type": "llama4_text",
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "num_hidden_layers": 4,
            "attention_chunk_size": 64,
            "interleave_moe_layer_step": 2,
        },
        {
            **_VISION,
            "model_type": "llama4_vision_model",
            "num_channels": 3,
            "initializer_range": 0.02,
            "norm_eps": 1e-5,
            "pixel_shuffle_ratio": 0.5,
            "projector_dropout": 0.0,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "vision_output_dim": 48,
            "intermediate_size": 192,
            "rope_theta": 10_000,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        },
    ),
    "internvl_chat": _family(
        "internvl_chat",
        squares(),
        4,
        {**_TEXT, "model_type": "qwen2"},
        {**_VISION, "model_type": "intern_vit_6b"},
    ),
    "glm4v": _family(
        "glm4v",
        _THW,
        6,
        {
            **_TEXT,
            "model_type": "glm4v_text",
            "eos_token_id": [2],
            "rope_scaling": {**_MROPE, "mrope_section": [1, 1, 2]},
        },
        {**_QWEN_VISION, "model_type": "glm4v"},
        **_QWEN_TOKENS,
        **_AROUND,
    ),
    "glm4v_moe": _family(
        "glm4v_moe",
        _THW,
        6,
        {
            **_HEADS,
            **_EXPERTS,
            "model_type": "glm4v_moe_text",
            "use_qk_norm": False,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {**_MROPE, "mrope_section": [1, 1, 2]},
        },
        {**_QWEN_VISION, "model_type": "glm4v_moe"},
        **_QWEN_TOKENS,
        **_AROUND,
    ),
    "glm_ocr": _family(
        "glm_ocr",
        _THW,
        6,
        {
            **{name: value for name, value in _HEADS.items() if name != "rope_theta"},
            "model_type": "glm_ocr_text",
            "num_nextn_predict_layers": 0,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "partial_rotary_factor": 1.0,
                "rope_theta": 10_000,
            },
        },
        {**_QWEN_VISION, "model_type": "glm_ocr_vision"},
        **_QWEN_TOKENS,
        image_start_token_id=5,
        image_end_token_id=6,
        **_AROUND,
    ),
    "paddleocr_vl": _family(
        "paddleocr_vl",
        patches(3 * 64, 1, 4, 6, shape=(1, -1, 3, 8, 8)),
        6,
        {
            **_HEADS,
            "model_type": "paddleocr_vl",
            "hidden_size": 1024,
            "rope_scaling": _MROPE,
            "use_bias": False,
        },
        {**_VISION, "model_type": "paddleocr_vl"},
        flat=True,
        **_QWEN_TOKENS,
        **_AROUND,
    ),
    "ernie4_5_moe_vl": _family(
        "ernie4_5_moe_vl",
        patches(3 * 64, 1, 4, 6),
        6,
        {
            **_HEADS,
            "model_type": "ernie",
            "moe_num_experts": [4, 4],
            "moe_intermediate_size": [32, 32],
            "moe_layer_start_index": [1, 1],
            "moe_layer_end_index": [2, 2],
            "moe_capacity": [8, 8, 8],
            "moe_num_shared_experts": 1,
            "mrope_section": [2, 2, 4],
            "freq_allocation": 4,
        },
        {
            "model_type": "DFNRope_vision_transformer",
            "depth": 2,
            "embed_dim": 48,
            "hidden_size": 48,
            "num_heads": 3,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        flat=True,
        **{**_QWEN_TOKENS, "image_start_token_id": 5, "image_end_token_id": 6, "im_patch_id": IMAGE},
        hidden_size=64,
        pixel_hidden_size=48,
        **_AROUND,
    ),
    "kimi_vl": _family(
        "kimi_vl",
        patches(3 * 64, 4, 6, name="image_grid_hws", shape=(-1, 3, 8, 8)),
        6,
        {**_MLA, "model_type": "deepseek_v3"},
        {
            "model_type": "moonvit",
            "depth": 2,
            "embed_dim": 48,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 80,
            "patch_size": 8,
            "spatial_patch_size": 8,
            "init_pos_emb_height": 8,
            "init_pos_emb_width": 8,
            "merge_kernel_size": [2, 2],
        },
        media_placeholder_token_id=IMAGE,
    ),
    "molmo": _family(
        "molmo",
        lambda rngs: {
            "pixel_values": np.stack([_noise(rng, 16, 192) for rng in rngs]),
            "image_masks": np.ones((len(rngs), 16), np.float32),
        },
        4,
        {
            "model_type": "molmo",
            "d_model": 64,
            "n_heads": 4,
            "n_kv_heads": 2,
            "n_layers": 3,
            "mlp_hidden_size": 192,
            "vocab_size": VOCABULARY,
            "embedding_size": VOCABULARY,
            "additional_vocab_size": 8,
        },
        {
            "model_type": "molmo",
            "image_default_input_size": [32, 32],
            "image_patch_size": 8,
            "image_pos_patch_size": 8,
            "hidden_size": 192,
            "image_emb_dim": 48,
            "image_num_heads": 3,
            "image_num_key_value_heads": 3,
            "image_num_layers": 3,
            "image_head_dim": 16,
            "image_mlp_dim": 80,
            "image_num_pos": 17,
            "d_model": 64,
            "vit_layers": [-1, -2],
        },
        index="image_input_idx",
    ),
    "aya_vision": _family(
        "aya_vision",
        squares(),
        4,
        {
            **_HEADS,
            "model_type": "cohere2",
            "num_hidden_layers": 4,
            "sliding_window": 64,
            "logit_scale": 1.0,
            "sliding_window_pattern": 4,
        },
        _SIGLIP,
        alignment_intermediate_size=64,
    ),
    "dots_ocr": _family(
        "dots_ocr",
        patches(3 * 64, 1, 4, 6),
        6,
        {**_TEXT, "model_type": "dots_ocr"},
        {
            "model_type": "dots_vit",
            "embed_dim": 48,
            "hidden_size": 64,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": 8,
        },
        video_token_id=8,
        **_AROUND,
    ),
    "lfm2_vl": _stored("lfm2_vl", _lfm2, 6),
    "granite_vision": _family(
        "granite_vision",
        squares(1),
        16,
        {**_TEXT, "model_type": "granite", "logits_scaling": 1.0},
        _SIGLIP,
    ),
    "llava_bunny": _family(
        "llava_bunny",
        squares(side=216),
        1,
        {**_TEXT, "model_type": "qwen2"},
        {**_SIGLIP, "image_size": 216},  # 729 patches, as it insists
        mm_hidden_size=48,
        hidden_size=64,
        auto_map={},
        placeholder=-200,
    ),
    "jina_vlm": _family(
        "jina_vlm",
        lambda rngs: {
            "pixel_values": np.stack([_noise(rng, 1, 16, 3 * 64) for rng in rngs]).reshape(1, -1, 16, 192)
        },
        4,
        {**_HEADS, "model_type": "jina_vlm", "additional_vocab_size": 8},
        {
            **_VISION,
            "model_type": "jina_vlm",
            "head_dim": 16,
            "vit_layers": [-1, -2],
            "output_size": 64,
            "connector_hidden_size": 96,
        },
        index="image_input_idx",
    ),
}
