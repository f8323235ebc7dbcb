"""Tiny FLUX.1 schnell and Stable Diffusion 3 with random weights, in the files that diffusionkit reads.

The names of tensors are those of the original releases; `to_original` turns diffusers' into them. Nothing
but numpy is imported here, so that torch's side and ours build the same weights.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
DATA = Path(__file__).parent / "reference"
PROMPT, NEGATIVE = "a red circle on blue", "a small square"
SIDE, LATENT = 128, 16
STEPS = {"flux": 4, "sd3": 6}
GUIDANCE = 4.0
HIDDEN, HEADS = 64, 2
FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": HIDDEN // HEADS,
    "num_attention_heads": HEADS,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 48,
    "guidance_embeds": False,
    "axes_dims_rope": [8, 12, 12],
}
SD3: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 2,
    "attention_head_dim": HIDDEN // HEADS,
    "num_attention_heads": HEADS,
    "joint_attention_dim": 4096,
    "caption_projection_dim": HIDDEN,
    "pooled_projection_dim": 48 + 40,
    "out_channels": 16,
    "pos_embed_max_size": 24,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": [32, 64, 128, 128],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
FACTORS = {"flux": (0.3611, 0.1159), "sd3": (1.5305, 0.0609)}


def clip(width: int, projection: bool) -> dict[str, Any]:
    """A text encoder's configuration."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "vocab_size": 594,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu" if width == 48 else "gelu",
        "projection_dim": width,
        "bos_token_id": 592,
        "eos_token_id": 593,
        "pad_token_id": 593,
    }


def t5(family: str) -> dict[str, Any]:
    """T5's configuration."""
    return {
        "model_type": "t5",
        "vocab_size": 64,
        "d_model": 32 if family == "flux" else 4096,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 2,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
    }


def weight(family: str, part: str, name: str, shape: tuple[int, ...]) -> Array:
    """A tensor of the size that training would give it; biases and norms are random as well."""
    numbers = np.random.RandomState(zlib.crc32(f"{family}/{part}/{name}".encode()))
    values = numbers.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        norm = name.endswith(("weight", "scale"))
        return values * np.float32(0.1) + np.float32(1.0 if norm else 0.0)
    if "embedding.weight" in name or "shared" in name or "embed_tokens" in name:
        return values * np.float32(0.5)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def noise() -> Array:
    """What a picture starts from, (1, 16, height, width)."""
    return np.random.RandomState(3).standard_normal((1, 16, LATENT, LATENT)).astype(np.float32)


def packed(latents: Array) -> Array:
    """Latents (1, channels, height, width) as a row of two by two places, (1, places, 4 channels)."""
    batch, channels, height, width = latents.shape
    found = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(found.reshape(batch, height * width // 4, channels * 4))


def job(model: Any, guidance: float, negative: str | None = None) -> Any:
    """What is asked of a tiny model (its module here) where its picture is compared."""
    from mlxengine_diffusion.backends._work import Job

    return Job(
        prompt=model.PROMPT,
        negative=negative,
        width=model.SIDE,
        height=model.SIDE,
        steps=model.STEPS,
        guidance=guidance,
        seed=0,
        scheduler="",
    )


def pixels(pipeline: Any, job: Any, *noise: Any) -> np.ndarray[Any, Any]:
    """The picture that a back end's pipeline makes of a job: (height, width, 3), int."""
    *_, last = pipeline.denoise(job, *noise)
    walk = pipeline.decode(last.latents, job)
    while True:
        try:
            next(walk)
        except StopIteration as end:
            found: np.ndarray[Any, Any] = end.value.astype(int)
            return found


_FLUX_NAMES = (
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^context_embedder", "txt_in"),
    (r"^x_embedder", "img_in"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"\.norm1\.linear", ".img_mod.lin"),
    (r"\.norm1_context\.linear", ".txt_mod.lin"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"(double.*)\.attn\.norm_q\.weight", r"\1.img_attn.norm.query_norm.scale"),
    (r"(double.*)\.attn\.norm_k\.weight", r"\1.img_attn.norm.key_norm.scale"),
    (r"(single.*)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"(single.*)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"\.ff\.net\.0\.proj", ".img_mlp.0"),
    (r"\.ff\.net\.2", ".img_mlp.2"),
    (r"\.ff_context\.net\.0\.proj", ".txt_mlp.0"),
    (r"\.ff_context\.net\.2", ".txt_mlp.2"),
    (r"\.attn\.to_out\.0", ".img_attn.proj"),
    (r"\.attn\.to_add_out", ".txt_attn.proj"),
    (r"(single_blocks\.\d+)\.norm\.linear", r"\1.modulation.lin"),
    (r"(single_blocks\.\d+)\.proj_out", r"\1.linear2"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
)
_SD3_NAMES = (
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^transformer_blocks\.", "joint_blocks."),
    (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
    (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
    (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"),
    (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
    (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"),
    (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
    (r"\.attn\.to_out\.0", ".x_block.attn.proj"),
    (r"\.attn\.to_add_out", ".context_block.attn.proj"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
)
_VAE_NAMES = (
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv", r"encoder.down.\1.downsample.conv"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, text in pairs:
        name = re.sub(pattern, text, name)
    return name


def _halves_swapped(value: Array) -> Array:
    """diffusers keeps scale before shift where the originals keep shift before scale."""
    first, second = np.split(value, 2)
    return np.concatenate([second, first])


def to_original(family: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """diffusers' transformer as the original release names and packs it."""
    names, last = (_FLUX_NAMES, None) if family == "flux" else (_SD3_NAMES, SD3["num_layers"] - 1)
    found: dict[str, Array] = {}
    for name, value in tensors.items():
        match = re.match(r"(.+)\.(to_q|add_q_proj)\.(weight|bias)$", name)
        if match:
            block, kind, end = match.groups()
            rest = ("to_k", "to_v") if kind == "to_q" else ("add_k_proj", "add_v_proj")
            packed = [value, *(tensors[f"{block}.{other}.{end}"] for other in rest)]
            if block.startswith("single"):
                packed.append(tensors[f"{block.removesuffix('.attn')}.proj_mlp.{end}"])
                found[_renamed(block.removesuffix(".attn"), names) + f".linear1.{end}"] = np.concatenate(
                    packed
                )
                continue
            side = {"flux": ("img_attn", "txt_attn"), "sd3": ("x_block.attn", "context_block.attn")}[family]
            owner = _renamed(block.removesuffix("attn"), names) + side[kind != "to_q"]
            found[f"{owner}.qkv.{end}"] = np.concatenate(packed)
        elif not re.search(r"\.(to_k|to_v|add_k_proj|add_v_proj|proj_mlp)\.", name):
            swap = name.startswith("norm_out") or f"blocks.{last}.norm1_context.linear" in name
            found[_renamed(name, names)] = _halves_swapped(value) if swap else value
    return found


def vae_to_original(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """diffusers' autoencoder as the original release names it."""
    found = {}
    levels = len(VAE["block_out_channels"]) - 1
    for name, value in tensors.items():
        match = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.+)", name)
        original = name
        if match:
            kind = "block" if match[2] == "resnets" else "upsample"
            original = f"decoder.up.{levels - int(match[1])}.{kind}.{match[3]}"
        original = _renamed(original, _VAE_NAMES)
        if ".mid.attn_1." in original and value.ndim == 2:
            value = value[:, :, None, None]
        found[original] = value
    return found


def shapes() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Names and shapes of every tensor in diffusers' and transformers' form: by family, by part."""
    found: dict[str, dict[str, dict[str, list[int]]]] = json.loads((DATA / "shapes.json").read_text())
    return found


def tensors(family: str, part: str) -> dict[str, Array]:
    """A part's weights, in diffusers' or transformers' form."""
    return {name: weight(family, part, name, tuple(shape)) for name, shape in shapes()[family][part].items()}


def write(family: str, root: Path, clip_tokenizer: Path) -> dict[str, Path]:
    """Lay out the repositories that diffusionkit's model consists of: id to folder."""
    from safetensors.numpy import save_file

    main, text, words = root / "main", root / "text", root / "t5"
    for folder in (main, text / "t5", words):
        folder.mkdir(parents=True)
    network = to_original(family, tensors(family, "transformer"))
    decoder = vae_to_original(tensors(family, "vae"))
    (main / "config.json").write_text("{}")
    if family == "flux":
        save_file(network, main / "flux-schnell.safetensors")
        save_file(decoder, main / "ae.safetensors")
    else:
        together = {f"model.diffusion_model.{name}": value for name, value in network.items()}
        together |= {f"first_stage_model.{name}": value for name, value in decoder.items()}
        save_file(together, main / "sd3_medium.safetensors")
    for name, width in (("l", 48), ("g", 40)):
        (text / f"clip_{name}").mkdir()
        config = clip(width, projection=family == "sd3")
        (text / f"clip_{name}" / "config.json").write_text(json.dumps(config))
        if family == "sd3" or name == "l":
            save_file(tensors(family, f"clip_{name}"), text / f"clip_{name}" / "model.fp16.safetensors")
        (text / f"tokenizer_{name}").mkdir()
        for file in ("vocab.json", "merges.txt"):
            (text / f"tokenizer_{name}" / file).write_bytes((clip_tokenizer / file).read_bytes())
    save_file(tensors(family, "t5"), text / "t5" / "t5xxl.safetensors")
    (words / "config.json").write_text(json.dumps(t5(family)))
    write_t5_tokenizer(words)
    return folders(root)


def folders(root: Path) -> dict[str, Path]:
    """The repositories that `write` lays out: id to folder."""
    return {
        "main": root / "main",
        "argmaxinc/stable-diffusion": root / "text",
        "google/t5-v1_1-xxl": root / "t5",
    }


def write_t5_tokenizer(folder: Path) -> None:
    """Letters as tokens, with T5's special ones: enough for both sides to agree."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
