"""Small models that see, with random weights in the real layout, and pictures and texts for them.

Only numpy, safetensors, tokenizers and Pillow are needed, so that the reference script can write them in an
environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from embed_checkpoints import _QWEN_NORMS, _decoder, write_tokenizer
from embed_checkpoints import _Weights as Weights
from PIL import Image
from safetensors.numpy import save_file

TEXTS = ["w1 w2 w3", "w7", "", "w9 w8 w7 w6 w5 w4 w3 w2 w1 w0 w11 w12 w13 w14 w15 w16 w17", "w3 w3"]
CLIP_TEXTS = ["a cat sleeps", "Cat!", "", "the quick brown fox jumps over the lazy dog and so on", "dog"]
SIDE, PATCH, SIZE, INNER, LAYERS, HEADS, DIMENSION = 32, 8, 48, 80, 2, 4, 24
WIDTH = 64  # of `embed_checkpoints`' decoders
LONGEST = 16


def pictures() -> list[Image.Image]:
    """Of several sizes, shapes and modes; none is transparent."""
    random = np.random.default_rng(7)
    noise = random.integers(0, 256, (45, 61, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:90, 0:33]
    slope = np.stack([rows * 2, columns * 7, (rows + columns) % 256], axis=-1).astype(np.uint8)
    small = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    grey = Image.fromarray(noise[..., 0])
    return [
        Image.fromarray(noise),
        Image.fromarray(slope),
        small,
        grey,
        small.resize((SIDE, SIDE)).quantize(16),
    ]


def _tower(weights: Weights, base: str) -> None:
    for layer in range(LAYERS):
        at = f"{base}.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights.linear(f"{at}.self_attn.{name}", SIZE, SIZE)
        for name in ("layer_norm1", "layer_norm2"):
            weights.norm(f"{at}.{name}", SIZE)
        weights.linear(f"{at}.mlp.fc1", INNER, SIZE)
        weights.linear(f"{at}.mlp.fc2", SIZE, INNER)


def _towers(weights: Weights, words: int, clip: bool) -> None:
    weights.matrix("text_model.embeddings.token_embedding.weight", words, SIZE)
    weights.matrix("text_model.embeddings.position_embedding.weight", LONGEST, SIZE)
    _tower(weights, "text_model")
    weights.norm("text_model.final_layer_norm", SIZE)
    _vision(weights, clip, "vision_model")
    weights.tensors["logit_scale"] = np.ones(() if clip else 1, dtype=np.float32)
    if clip:
        weights.linear("text_projection", DIMENSION, SIZE, bias=False)
        weights.linear("visual_projection", DIMENSION, SIZE, bias=False)
        return
    weights.tensors["logit_bias"] = np.ones(1, dtype=np.float32)
    weights.linear("text_model.head", SIZE, SIZE)
    head = "vision_model.head"
    weights.matrix(f"{head}.probe", 1, 1, SIZE)
    weights.linear(f"{head}.attention.out_proj", SIZE, SIZE)
    weights.linear(f"{head}.attention.in_proj", 3 * SIZE, SIZE)
    for part in ("weight", "bias"):
        found = weights.tensors.pop(f"{head}.attention.in_proj.{part}")
        weights.tensors[f"{head}.attention.in_proj_{part}"] = found
    weights.norm(f"{head}.layernorm", SIZE)
    weights.linear(f"{head}.mlp.fc1", INNER, SIZE)
    weights.linear(f"{head}.mlp.fc2", SIZE, INNER)


def _vision(weights: Weights, clip: bool, base: str) -> None:
    places = (SIDE // PATCH) ** 2 + clip
    weights.matrix(f"{base}.embeddings.position_embedding.weight", places, SIZE)
    weights.linear(f"{base}.embeddings.patch_embedding", SIZE, 3 * PATCH * PATCH, bias=not clip)
    name = f"{base}.embeddings.patch_embedding.weight"
    weights.tensors[name] = weights.tensors[name].reshape(SIZE, 3, PATCH, PATCH)
    _tower(weights, base)
    weights.norm(f"{base}.post_layernorm", SIZE)
    if clip:
        weights.matrix(f"{base}.embeddings.class_embedding", SIZE)
        weights.norm(f"{base}.pre_layrnorm", SIZE)


def _config(kind: str, words: int, text: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"hidden_size": SIZE, "intermediate_size": INNER}
    sizes |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "model_type": f"{kind}_text_model"}
    own = {**sizes, "vocab_size": words, "max_position_embeddings": LONGEST, **text}
    seen = {**sizes, "model_type": f"{kind}_vision_model", "image_size": SIDE, "patch_size": PATCH}
    whole = {"model_type": kind, "text_config": own, "vision_config": seen, "initializer_factor": 1.0}
    return {**whole, "architectures": ["CLIPModel" if kind == "clip" else "SiglipModel"]}


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_clip_tokenizer(folder: Path) -> int:
    """CLIP's own layout: a vocabulary of bytes, each also at the end of a word, and a few merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
    merges = ["c a", "ca t</w>", "t h", "th e</w>", "d o", "do g</w>"]
    words = [*signs, *(f"{sign}</w>" for sign in signs), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    _json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    names = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    settings = {**names, "bos_token": "<|startoftext|>", "tokenizer_class": "CLIPTokenizer"}
    _json(folder / "tokenizer_config.json", settings | {"model_max_length": LONGEST, "do_lower_case": True})
    return len(words)


def _clip(seed: int, act: str = "quick_gelu", end: int | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        words = write_clip_tokenizer(folder)
        weights = Weights(seed)
        _towers(weights, words, clip=True)
        ends = {"eos_token_id": words - 1 if end is None else end, "bos_token_id": words - 2}
        config = _config("clip", words, {**ends, "hidden_act": act})
        config["vision_config"]["hidden_act"] = act
        for part in ("text_config", "vision_config"):
            config[part]["projection_dim"] = DIMENSION
        _json(folder / "config.json", {**config, "projection_dim": DIMENSION})
        save_file(weights.tensors, str(folder / "model.safetensors"), {"format": "pt"})
        # As OpenAI's repositories have it.
        settings = {"crop_size": SIDE, "do_center_crop": True, "do_normalize": True, "do_resize": True}
        settings |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": SIDE}
        settings |= {"image_mean": [0.48145466, 0.4578275, 0.40821073]}
        settings |= {"image_std": [0.26862954, 0.26130258, 0.27577711]}
        _json(folder / "preprocessor_config.json", settings)

    return write


def _in_sentence_transformers(folder: Path) -> None:
    """``sentence-transformers/clip-ViT-B-32``: the model is a module of its own, and nothing follows it."""
    _clip(70)(folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel"}
    _json(folder / "modules.json", [module | {"type": "sentence_transformers.models.CLIPModel"}])


def _saved(folder: Path) -> None:
    """The same as sentence-transformers 6 saves it, with a stage that follows."""
    _clip(70)(folder)
    old = folder / "preprocessor_config.json"
    settings = {**json.loads(old.read_text()), "image_processor_type": "CLIPImageProcessor"}
    del settings["feature_extractor_type"]
    old.unlink()
    _json(folder / "processor_config.json", {"image_processor": settings, "processor_class": "CLIPProcessor"})
    base = "sentence_transformers.base.modules"
    entries = {"": f"{base}.transformer.Transformer", "1_Normalize": f"{base}.normalize.Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(entries.items())
    ]
    _json(folder / "modules.json", modules)
    (folder / "1_Normalize").mkdir()
    ways = {
        "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
        "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
    }
    told = {"transformer_task": "feature-extraction", "module_output_name": "sentence_embedding"}
    _json(folder / "sentence_bert_config.json", {**told, "modality_config": ways})


def _siglip(seed: int, side: str = "right", masks: bool = False, resample: int = 3) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder, "last", side=side, longest=LONGEST)
        words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        path = folder / "tokenizer_config.json"
        inputs = ["input_ids", *(["attention_mask"] if masks else [])]
        _json(path, json.loads(path.read_text()) | {"model_input_names": inputs})
        weights = Weights(seed)
        _towers(weights, len(words), clip=False)
        config = _config("siglip", len(words), {"pad_token_id": 0})
        _json(folder / "config.json", config)
        save_file(weights.tensors, str(folder / "model.safetensors"), {"format": "pt"})
        settings = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": resample}
        settings |= {"size": {"height": SIDE, "width": SIDE}, "rescale_factor": 1 / 255}
        settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        _json(
            folder / "preprocessor_config.json", settings | {"image_processor_type": "SiglipImageProcessor"}
        )

    return write


SEEING: Mapping[str, Callable[[Path], None]] = {
    "clip": _clip(70),
    "clip-gelu": _clip(71, "gelu"),
    "clip-old-end": _clip(72, end=2),
    "clip-modules": _in_sentence_transformers,
    "clip-saved": _saved,
    "siglip": _siglip(73),
    "siglip2": _siglip(74, "left", masks=True, resample=2),
}


def _colpali(seed: int, old: bool) -> Callable[[Path], None]:
    """``vidore/colpali-v1.3-hf``, with the tensors' names of the version that wrote it, or of newer ones."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        more = ("<image>", "\n", "Question", ":", "Describe", "the", "image", ".")
        write_tokenizer(folder, "last", more=more, special=("<image>",))
        words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        weights = Weights(seed)
        _vision(weights, clip=False, base="vision_tower")
        weights.linear("multi_modal_projector.linear", WIDTH, SIZE)
        _decoder(weights, 2, _QWEN_NORMS, 0.0, heads=False, words=len(words))
        tensors = {}
        decoder = ("embed_tokens", "layers", "norm.")
        for name, value in weights.tensors.items():
            inner = name.removeprefix("vision_tower.")
            at = f"vision_tower.vision_model.{inner}" if old and inner != name else name
            if name.startswith(decoder):
                at = f"language_model.{'model.' if old else ''}{name}"
            tensors[f"vlm.{at}"] = value
        last = Weights(seed + 1)
        last.linear("embedding_proj_layer", DIMENSION, WIDTH)
        save_file({**tensors, **last.tensors}, str(folder / "model.safetensors"), {"format": "pt"})
        text = {"model_type": "gemma", "vocab_size": len(words), "hidden_size": WIDTH, "head_dim": 16}
        text |= {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 2, "num_image_tokens": 16, "max_position_embeddings": 128}
        seen = {
            **_config("siglip", 1, {})["vision_config"],
            "vision_use_head": False,
            "projection_dim": WIDTH,
        }
        inner_config = {"model_type": "paligemma", "text_config": text, "vision_config": seen}
        inner_config |= {"image_token_index": words["<image>"], "hidden_size": WIDTH, "projection_dim": WIDTH}
        config = {
            "model_type": "colpali",
            "architectures": ["ColPaliForRetrieval"],
            "vlm_config": inner_config,
        }
        _json(folder / "config.json", {**config, "embedding_dim": DIMENSION})
        settings = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
        settings |= {"size": {"height": SIDE, "width": SIDE}, "image_seq_length": 16}
        settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        settings |= {"image_processor_type": "SiglipImageProcessor", "processor_class": "ColPaliProcessor"}
        _json(folder / "preprocessor_config.json", settings)

    return write


LATE: Mapping[str, Callable[[Path], None]] = {
    "colpali": _colpali(76, False),
    "colpali-old": _colpali(76, True),
}


ALL = {**SEEING, **LATE}


def texts_of(name: str) -> list[str]:
    """What a model's tokenizer knows."""
    return CLIP_TEXTS if name.startswith("clip") else TEXTS


def write(name: str, root: Path) -> Path:
    """Write one of `ALL` below a folder, once."""
    folder = root / name
    if not folder.exists():
        ALL[name](folder)
    return folder
