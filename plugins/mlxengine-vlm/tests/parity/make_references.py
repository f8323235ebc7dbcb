"""Compute the stored logits of the parity tests with transformers and torch.

Run in an environment with torch and transformers; writes ``references.json`` beside this file::

    python plugins/mlxengine-vlm/tests/parity/make_references.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from random_checkpoint import TEXT, pixels, write

VOCABULARY, IMAGE = 120, 7

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_SIGLIP = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}
_ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
_MROPE = {**_ROPE, "mrope_section": [2, 3, 3]}


def _prompt(tokens: int, *, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> list[int]:
    return [1, 20, 31, *before, *([IMAGE] * tokens), *after, 44, 9, 60, 71, 15]


_QWEN_IDS = _prompt(6, before=(5,), after=(6,))
_QWEN_INPUTS = {
    "input_ids": _QWEN_IDS,
    "pixel_values": (24, 3 * 2 * 64),
    "image_grid_thw": [[1, 4, 6]],
    "mm_token_type_ids": [int(token == IMAGE) for token in _QWEN_IDS],
}


def _smolvlm(kind: str) -> tuple[Any, Any, dict[str, Any]]:
    names = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}
    config = getattr(hf, f"{names[kind]}Config")(
        text_config=hf.LlamaConfig(**_TEXT, rope_parameters=_ROPE),
        vision_config=getattr(hf, f"{names[kind]}VisionConfig")(**_SIGLIP),
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = getattr(hf, f"{names[kind]}ForConditionalGeneration")
    return model, config, {"input_ids": _prompt(4), "pixel_values": (1, 1, 3, 32, 32)}


def _llava(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_TEXT, rope_parameters=_ROPE),
        vision_config=hf.CLIPVisionConfig(**{**_SIGLIP, "projection_dim": 48}),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return (
        hf.LlavaForConditionalGeneration,
        config,
        {"input_ids": _prompt(16), "pixel_values": (1, 3, 32, 32)},
    )


def _qwen2_vl(kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    tokens = {
        "image_token_id": IMAGE,
        "video_token_id": 8,
        "vision_start_token_id": 5,
        "vision_end_token_id": 6,
        "tie_word_embeddings": False,
    }
    if kind == "qwen2_vl":
        vision = {
            "depth": 2,
            "embed_dim": 48,
            "hidden_size": 64,
            "num_heads": 3,
            "mlp_ratio": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        config = hf.Qwen2VLConfig(
            text_config={**text, "rope_parameters": _MROPE}, vision_config=vision, **tokens
        )
        model = hf.Qwen2VLForConditionalGeneration
    else:
        vision = {
            "depth": 2,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "num_heads": 3,
            "intermediate_size": 80,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }
        config = hf.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": _MROPE}, vision_config=vision, **tokens
        )
        model = hf.Qwen2_5_VLForConditionalGeneration
    return model, config, _QWEN_INPUTS


def _qwen3_vl(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    vision = {
        "depth": 3,
        "hidden_size": 48,
        "out_hidden_size": 64,
        "num_heads": 3,
        "intermediate_size": 80,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    config = hf.Qwen3VLConfig(
        text_config={**_TEXT, "rope_parameters": _MROPE},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=8,
        vision_start_token_id=5,
        vision_end_token_id=6,
        tie_word_embeddings=False,
    )
    return hf.Qwen3VLForConditionalGeneration, config, _QWEN_INPUTS


def _gemma3(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {
        **_TEXT,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
    }
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text),
        vision_config=hf.SiglipVisionConfig(**_SIGLIP),
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
        boi_token_id=5,
        eoi_token_id=6,
        tie_word_embeddings=True,
    )
    ids = _prompt(4, before=(5,), after=(6,))
    return (
        hf.Gemma3ForConditionalGeneration,
        config,
        {
            "input_ids": ids,
            "pixel_values": (1, 3, 32, 32),
            "token_type_ids": [int(token == IMAGE) for token in ids],
        },
    )


def _paligemma(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**{**_TEXT, "rope_parameters": _ROPE}),
        vision_config=hf.SiglipVisionConfig(**_SIGLIP, projection_dim=64),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        projection_dim=64,
    )
    ids = [*([IMAGE] * 16), 1, 20, 31, 44, 9]
    return (
        hf.PaliGemmaForConditionalGeneration,
        config,
        {"input_ids": ids, "pixel_values": (1, 3, 32, 32), "token_type_ids": [0] * len(ids)},
    )


def _lfm2_vl(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {key: value for key, value in _TEXT.items() if key not in ("head_dim",)}
    config = hf.Lfm2VlConfig(
        text_config=hf.Lfm2Config(
            **{**text, "tie_word_embeddings": True},
            rope_parameters=_ROPE,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", "full_attention", "conv"],
        ),
        vision_config=hf.Siglip2VisionConfig(**{**_SIGLIP, "num_patches": 16}),
        image_token_id=IMAGE,
        downsample_factor=2,
        projector_hidden_size=80,
    )
    return (
        hf.Lfm2VlForConditionalGeneration,
        config,
        {
            "input_ids": _prompt(6),
            "pixel_values": (1, 24, 3 * 64),
            "spatial_shapes": [[4, 6]],
            "pixel_attention_mask": [[1] * 24],
        },
    )


def _glm4v(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {key: value for key, value in _TEXT.items() if key not in ("head_dim", "tie_word_embeddings")}
    rope = {**_ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    config = hf.Glm4vConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "num_heads": 3,
            "intermediate_size": 80,
            "patch_size": 8,
            "image_size": 32,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE,
        video_token_id=8,
        image_start_token_id=5,
        image_end_token_id=6,
        vision_start_token_id=5,
        vision_end_token_id=6,
        tie_word_embeddings=False,
    )
    return hf.Glm4vForConditionalGeneration, config, _QWEN_INPUTS


def _mllama(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    vision = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "attention_heads": 16,
        "max_num_tiles": 4,
        "num_global_layers": 1,
        "vision_output_dim": 128,
        "intermediate_layers_indices": [0],
    }
    config = hf.MllamaConfig(
        text_config={**text, "cross_attention_layers": [1], "rope_parameters": _ROPE},
        vision_config=vision,
        image_token_index=IMAGE,
    )
    ids = _prompt(1)
    return (
        hf.MllamaForConditionalGeneration,
        config,
        {
            "input_ids": ids,
            "pixel_values": (1, 1, 4, 3, 16, 16),
            "aspect_ratio_ids": [[1]],
            "aspect_ratio_mask": [[[1, 0, 0, 0]]],
            "cross_attention_mask": [[[[int(at >= ids.index(IMAGE)), 0, 0, 0]] for at in range(len(ids))]],
        },
    )


def _idefics2(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    vision = {key: value for key, value in _SIGLIP.items() if key != "vision_use_head"}
    config = hf.Idefics2Config(
        text_config=hf.MistralConfig(**text, rope_parameters=_ROPE),
        vision_config=vision,
        perceiver_config={
            "hidden_size": 64,
            "num_key_value_heads": 2,
            "resampler_depth": 1,
            "resampler_head_dim": 16,
            "resampler_n_heads": 4,
            "resampler_n_latents": 8,
        },
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    inputs = {
        "input_ids": _prompt(8),
        "pixel_values": (1, 1, 3, 32, 32),
        "pixel_attention_mask": [[[[1] * 32] * 32]],
    }
    return hf.Idefics2ForConditionalGeneration, config, inputs


def _mistral3(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**_TEXT, rope_parameters=_ROPE, sliding_window=None),
        vision_config=hf.PixtralVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=3,
            head_dim=16,
            image_size=32,
            patch_size=8,
            hidden_act="silu",
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        ),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    inputs = {"input_ids": _prompt(4), "pixel_values": (1, 3, 32, 32), "image_sizes": [[32, 32]]}
    return hf.Mistral3ForConditionalGeneration, config, inputs


def _aya_vision(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    config = hf.AyaVisionConfig(
        text_config=hf.Cohere2Config(
            **{**_TEXT, "tie_word_embeddings": True, "num_hidden_layers": 4},
            rope_parameters=_ROPE,
            sliding_window=64,
            logit_scale=1.0,
        ),
        vision_config=hf.SiglipVisionConfig(**_SIGLIP),
        image_token_index=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    inputs = {"input_ids": _prompt(4), "pixel_values": (1, 3, 32, 32)}
    return hf.AyaVisionForConditionalGeneration, config, inputs


def _llava_onevision(_kind: str) -> tuple[Any, Any, dict[str, Any]]:
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    config = hf.LlavaOnevisionConfig(
        text_config=hf.Qwen2Config(**text, rope_parameters=_ROPE),
        vision_config=hf.SiglipVisionConfig(**_SIGLIP),
        image_token_index=IMAGE,
        video_token_index=8,
        image_grid_pinpoints=[[32, 32]],
        tie_word_embeddings=False,
    )
    inputs = {"input_ids": _prompt(36), "pixel_values": (1, 2, 3, 32, 32), "image_sizes": [[32, 32]]}
    return hf.LlavaOnevisionForConditionalGeneration, config, inputs


ARCHITECTURES: dict[str, Callable[[str], tuple[Any, Any, dict[str, Any]]]] = {
    "smolvlm": _smolvlm,
    "idefics3": _smolvlm,
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "lfm2_vl": _lfm2_vl,
    "glm4v": _glm4v,
    "mllama": _mllama,
    "idefics2": _idefics2,
    "mistral3": _mistral3,
    "aya_vision": _aya_vision,
    "llava_onevision": _llava_onevision,
}


def reference(kind: str) -> dict[str, Any]:
    """Config, the tensors' names and shapes, inputs, and the last three positions' logits, a text's too."""
    model_class, config, inputs = ARCHITECTURES[kind](kind)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        model_class(config).save_pretrained(made)
        config_json = json.loads((made / "config.json").read_text())
        shapes = _shapes(made / "model.safetensors")
        checkpoint = write(Path(folder) / "random", config_json, shapes)
        model = model_class.from_pretrained(
            checkpoint, attn_implementation="eager", dtype=torch.float32
        ).eval()
        feed = {name: _torch(name, value) for name, value in inputs.items()}
        with torch.no_grad():
            logits = model(**feed).logits[0, -3:]
            plain = {
                name: torch.zeros(1, len(TEXT), dtype=int) for name in inputs if name == "token_type_ids"
            }
            text = model(input_ids=torch.tensor([TEXT]), **plain).logits[0, -3:]
    return {
        "config": config_json,
        "shapes": shapes,
        "inputs": inputs,
        "logits": [[round(value, 6) for value in row] for row in logits.tolist()],
        "text": [[round(value, 6) for value in row] for row in text.tolist()],
    }


def _torch(name: str, value: Any) -> torch.Tensor:
    if name == "pixel_values":
        return torch.from_numpy(pixels(value))
    found = torch.tensor(value)
    return found[None] if name in ("input_ids", "token_type_ids", "mm_token_type_ids") else found


def _shapes(path: Path) -> dict[str, list[int]]:
    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    listed = json.loads(header[8 : 8 + size])
    return {name: item["shape"] for name, item in sorted(listed.items()) if name != "__metadata__"}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "references.json")
    target = arguments.parse_args().out
    made = {kind: reference(kind) for kind in ARCHITECTURES}
    target.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n")
