"""Whole random checkpoints: the parity tests' weights with a tokenizer of words and a real processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from random_checkpoint import write
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

REFERENCES = json.loads((Path(__file__).parent / "parity" / "references.json").read_text())
VOCABULARY = 120

_QWEN = {5: "<|vision_start|>", 6: "<|vision_end|>", 7: "<|image_pad|>", 8: "<|video_pad|>"}
_IDEFICS = {5: "<fake_token_around_image>", 6: "<global-img>", 7: "<image>"}
_SPECIAL = {
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "llava": {7: "<image>"},
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "gemma3": {5: "<start_of_image>", 6: "<end_of_image>", 7: "<image_soft_token>"},
    "paligemma": {7: "<image>"},
    "mllama": {7: "<|image|>"},
    "mistral3": {5: "[IMG_BREAK]", 6: "[IMG_END]", 7: "[IMG]"},
    "lfm2_vl": {5: "<|image_start|>", 6: "<|image_end|>", 7: "<image>"},
}
_TAG = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "mllama": "<|image|>",
    "mistral3": "[IMG]",
}
_MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "do_rescale": True}
_SQUARE = {**_MEAN, "do_resize": True, "size": {"height": 32, "width": 32}}
_PATCHES = {
    **_MEAN,
    "patch_size": 8,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 16 * 16,
    "max_pixels": 48 * 48,
    "size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48},
}
_PREPROCESSOR: dict[str, dict[str, Any]] = {
    "smolvlm": {**_MEAN, "image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": False},
    "idefics3": {**_MEAN, "image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False},
    "llava": {
        **_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    },
    "qwen2_vl": {**_PATCHES, "image_processor_type": "Qwen2VLImageProcessor"},
    "qwen2_5_vl": {**_PATCHES, "image_processor_type": "Qwen2VLImageProcessor"},
    "qwen3_vl": {**_PATCHES, "image_processor_type": "Qwen2VLImageProcessorFast"},
    "gemma3": {**_SQUARE, "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 4},
    "paligemma": {**_SQUARE, "image_processor_type": "SiglipImageProcessor", "image_seq_length": 16},
    "mllama": {
        **_MEAN,
        "image_processor_type": "MllamaImageProcessor",
        "do_resize": True,
        "do_pad": True,
        "do_convert_rgb": True,
        "size": {"height": 16, "width": 16},
        "max_image_tiles": 4,
    },
    "mistral3": {
        **_MEAN,
        "image_processor_type": "PixtralImageProcessor",
        "do_resize": True,
        "do_convert_rgb": True,
        "patch_size": 8,
        "size": {"longest_edge": 32},
    },
    "lfm2_vl": {
        **_MEAN,
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "encoder_patch_size": 8,
        "tile_size": 32,
        "downsample_factor": 2,
        "min_image_tokens": 4,
        "max_image_tokens": 16,
        "do_image_splitting": False,
        "max_num_patches": 64,
    },
}
_PROCESSOR: dict[str, dict[str, Any]] = {
    "smolvlm": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    "idefics3": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    "llava": {
        "processor_class": "LlavaProcessor",
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    },
    "qwen2_vl": {"processor_class": "Qwen2VLProcessor"},
    "qwen2_5_vl": {"processor_class": "Qwen2_5_VLProcessor"},
    "qwen3_vl": {"processor_class": "Qwen3VLProcessor"},
    "gemma3": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    "paligemma": {"processor_class": "PaliGemmaProcessor", "image_seq_length": 16},
    "mllama": {"processor_class": "MllamaProcessor"},
    "mistral3": {
        "processor_class": "PixtralProcessor",
        "patch_size": 8,
        "spatial_merge_size": 2,
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    },
    "lfm2_vl": {"processor_class": "Lfm2VlProcessor"},
}

WHOLE = sorted(_PROCESSOR)
"""The architectures that can be laid out."""


def lay_out(kind: str, folder: Path) -> Path:
    """Write a checkpoint of the architecture that loads, prompts and answers like a real one."""
    stored = REFERENCES[kind]
    write(folder, stored["config"], stored["shapes"])
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    write_tokenizer(
        folder, _SPECIAL[kind], _TAG.get(kind, "<image>"), named=named if kind == "gemma3" else {}
    )
    processor = _PROCESSOR[kind]
    preprocessor = {**_PREPROCESSOR[kind], "processor_class": processor["processor_class"]}
    if kind in ("smolvlm", "idefics3"):
        preprocessor |= {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def write_tokenizer(
    folder: Path,
    special: dict[int, str],
    image: str,
    audio: str = "<audio>",
    named: dict[str, str] | None = None,
) -> None:
    """Words as tokens (``w20`` is 20), and a chat template that writes the media's tags."""
    special = {0: "<pad>", 1: "<bos>", 2: "<eos>", 3: "<unk>", **special}
    words = {special.get(token, f"w{token}"): token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    added = [AddedToken(text, special=True, normalized=False) for text in special.values()]
    tokenizer.add_special_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    tags = {"image": image, "video": image.replace("image", "video"), "audio": audio}
    cases = "".join(
        f"{{% {'if' if not at else 'elif'} c.type == '{kind}' %}}{tag}"
        for at, (kind, tag) in enumerate(tags.items())
    )
    template = (
        "<bos>{% for m in messages %}{% for c in m.content %}"
        + cases
        + "{% else %} {{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": template,
    }
    if named:
        settings |= {**named, "extra_special_tokens": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
