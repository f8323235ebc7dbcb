"""Compute what transformers makes of checkpoints in the layout that its fifth generation writes.

The families here name or arrange something else than mlx-vlm's converters start from. Kept are the logits of
a text, and what the language model is given in the places of a picture: together they meet every tensor. Run
in an environment with torch and transformers; writes ``checkpoints.json`` beside this file::

    python plugins/mlxengine-vlm/tests/parity/make_checkpoints.py
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
from make_references import _MROPE, _QWEN_INPUTS, _ROPE, _SIGLIP, _TEXT, IMAGE, _prompt, _shapes, _torch
from random_checkpoint import write

WORDS = [1, 20, 31, 44, 9, 60, 71, 15]
COLUMNS = 16

_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 8,
    "image_start_token_id": 5,
    "image_end_token_id": 6,
    "video_start_token_id": 9,
    "video_end_token_id": 10,
}
_QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 8,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
    "tie_word_embeddings": False,
}
_GLM_VISION = {
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
_EXPERTS = {
    "moe_intermediate_size": 40,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# As large as the table of positions: mlx-vlm stretches it otherwise than transformers does.
_IDS = _prompt(4, before=(5,), after=(6,))
_SQUARE = {
    "input_ids": _IDS,
    "pixel_values": (16, 3 * 2 * 64),
    "image_grid_thw": [[1, 4, 4]],
    "mm_token_type_ids": [int(token == IMAGE) for token in _IDS],
}
Made = tuple[Any, Any, dict[str, Any]]


def _glm(kind: str) -> Made:
    names = {"glm4v": "Glm4v", "glm4v_moe": "Glm4vMoe", "glm_ocr": "GlmOcr"}
    rope = {**_MROPE, "partial_rotary_factor": 1.0 if kind == "glm_ocr" else 0.5}
    if kind != "glm_ocr":
        rope["mrope_section"] = [1, 1, 2]
    text = {**_TEXT, "rope_parameters": rope, **(_EXPERTS if kind == "glm4v_moe" else {})}
    config = getattr(hf, f"{names[kind]}Config")(text_config=text, vision_config=_GLM_VISION, **_TOKENS)
    return getattr(hf, f"{names[kind]}ForConditionalGeneration"), config, _SQUARE


def _qwen3_vl_moe(_kind: str) -> Made:
    vision = {
        **_GLM_VISION,
        "depth": 3,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {
        **_TEXT,
        "rope_parameters": _MROPE,
        "moe_intermediate_size": 40,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    config = hf.Qwen3VLMoeConfig(
        text_config=text,
        vision_config=vision,
        **_QWEN_TOKENS,
    )
    return hf.Qwen3VLMoeForConditionalGeneration, config, _QWEN_INPUTS


def _llama4(_kind: str) -> Made:
    text = {
        **_TEXT,
        "rope_parameters": _ROPE,
        "intermediate_size_mlp": 112,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 56,
        "projector_output_dim": 56,
        "vision_output_dim": 56,
    }
    config = hf.Llama4Config(text_config=text, vision_config=vision, image_token_index=IMAGE)
    inputs = {"input_ids": _prompt(4), "pixel_values": (1, 3, 32, 32)}
    return hf.Llama4ForConditionalGeneration, config, inputs


def _paddleocr_vl(_kind: str) -> Made:
    vision = {key: value for key, value in _SIGLIP.items() if key != "vision_use_head"}
    text = {
        **_TEXT,
        "hidden_size": 1024,
        "num_hidden_layers": 1,
        "rope_parameters": _MROPE,
    }  # the width is fixed
    config = hf.PaddleOCRVLConfig(
        text_config=text,
        vision_config=vision,
        **_QWEN_TOKENS,
    )
    inputs = {**_QWEN_INPUTS, "pixel_values": (24, 3, 8, 8)}
    return hf.PaddleOCRVLForConditionalGeneration, config, inputs


def _pixtral(_kind: str) -> Made:
    vision = hf.PixtralVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
        hidden_act="silu",
    )
    config = hf.LlavaConfig(
        text_config=hf.MistralConfig(**_TEXT, rope_parameters=_ROPE),
        vision_config=vision,
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    inputs = {"input_ids": _prompt(16), "pixel_values": (1, 3, 32, 32), "image_sizes": [[32, 32]]}
    return hf.LlavaForConditionalGeneration, config, inputs


def _internvl(_kind: str) -> Made:
    config = hf.InternVLConfig(
        text_config=hf.Qwen3Config(**_TEXT, rope_parameters=_ROPE),
        vision_config=hf.InternVLVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=[32, 32],
            patch_size=[8, 8],
            attention_bias=True,
        ),
        image_token_id=IMAGE,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    inputs = {"input_ids": _prompt(4), "pixel_values": (1, 3, 32, 32)}
    return hf.InternVLForConditionalGeneration, config, inputs


ARCHITECTURES: dict[str, Callable[[str], Made]] = {
    "glm4v": _glm,
    "glm4v_moe": _glm,
    "glm_ocr": _glm,
    "internvl": _internvl,
    "llama4": _llama4,
    "paddleocr_vl": _paddleocr_vl,
    "pixtral": _pixtral,
    "qwen3_vl_moe": _qwen3_vl_moe,
}


def reference(kind: str) -> dict[str, Any]:
    """Config, shapes, inputs, a text's last logits, and the first columns of a picture's features."""
    model_class, config, inputs = ARCHITECTURES[kind](kind)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        model_class(config).save_pretrained(made)
        config_json = json.loads((made / "config.json").read_text())
        shapes = _shapes(made / "model.safetensors")
        checkpoint = write(Path(folder) / "random", config_json, shapes)
        model = model_class.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)
    seen: dict[str, Any] = {}
    name = next(name for name, _ in model.named_modules() if name.endswith("language_model"))
    keep = model.get_submodule(name).register_forward_pre_hook(
        lambda _module, _given, named: seen.update(named), with_kwargs=True
    )
    with torch.no_grad():
        model.eval()(**{name: _torch(name, value) for name, value in inputs.items()})
        keep.remove()
        logits = model(input_ids=torch.tensor([WORDS])).logits[0, -2:]
    features = seen["inputs_embeds"][0][torch.tensor(inputs["input_ids"]) == IMAGE][:, :COLUMNS]
    return {
        "config": config_json,
        "shapes": shapes,
        "inputs": inputs,
        "logits": [[round(value, 5) for value in row] for row in logits.tolist()],
        "features": [[round(value, 5) for value in row] for row in features.tolist()],
    }


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoints.json")
    target = arguments.parse_args().out
    found = {kind: reference(kind) for kind in ARCHITECTURES}
    target.write_text(json.dumps(found, separators=(",", ":"), sort_keys=True) + "\n")
