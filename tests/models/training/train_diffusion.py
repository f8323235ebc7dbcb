"""Train tiny-shapes-sd: a Stable Diffusion pipeline of 3.8 million parameters on drawn pictures.

    python tests/models/training/train_diffusion.py OUT      # one H100, 8 minutes
    # does it run at all:
    python tests/models/training/train_diffusion.py OUT --vae-steps 2 --unet-steps 2 --batch 4 --pool 8 \\
        --judged 1

Needs torch, diffusers and transformers. First the VAE alone; then the UNet and the text encoder together,
on latents that were encoded once, with the min-SNR weighting of Hang et al. 2023 (arXiv:2303.09556, gamma 5)
and a tenth of the prompts empty, for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from drawings import ALL, SIDE, WORDS, Painter, judge
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
BETAS = (0.00085, 0.012)
LENGTH = 77
DEMO = (
    "a red circle",
    "a blue square on a yellow background",
    "a small green triangle on a black background",
    "a large orange ring",
    "a purple cross on a white background",
    "a white circle on a blue background",
    "a yellow triangle",
    "a black square",
)


def make_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with all 256 bytes and merges for just the words that prompts have."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    vocabulary = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for so_far in itertools.accumulate(pieces[1:], initial=pieces[0]):
            vocabulary.setdefault(so_far)
        merges |= {("".join(pieces[:at]), pieces[at]): None for at in range(1, len(pieces))}
    tokens = [*vocabulary, START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        **special,
    }
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    lines = "\n".join(" ".join(pair) for pair in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return CLIPTokenizer.from_pretrained(folder)


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + at) for at in range(256 - len(printable))]


def make_models(tokens: int) -> tuple[Any, Any, Any]:
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_act="quick_gelu",
            projection_dim=64,
            max_position_embeddings=LENGTH,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
    )
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=32,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[2, 4, 6],
        cross_attention_dim=64,
        use_linear_projection=True,
    )
    return text, vae, unet


def progress(steps: int | None, seconds: float) -> Iterator[tuple[int, float]]:
    """Step numbers and the share of the budget that is used, until the steps or the seconds are over."""
    start = time.monotonic()
    for step in itertools.count():
        done = (time.monotonic() - start) / seconds if steps is None else step / steps
        if done >= 1:
            return
        yield step, done


def optimise(optimizer: Any, parameters: list[Any], loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def half(device: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()


def train_vae(vae: Any, painter: Painter, options: argparse.Namespace, device: str) -> float:
    """Returns the factor that scales latents to unit variance."""
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.99))
    for step, done in progress(options.vae_steps, options.vae_seconds):
        picture, _ = painter.draw(min(256, options.batch))
        with half(device):
            latent = vae.encode(picture).latent_dist
            found = vae.decode(latent.sample()).sample.float()
        distance = functional.l1_loss(found, picture) + functional.mse_loss(found, picture)
        loss = distance + 1e-5 * latent.kl().mean() / 64
        optimise(optimizer, parameters, loss, 1e-3 * min(1, (step + 1) / 200) * max(0.02, 1 - done))
        if step % 500 == 0:
            print(f"vae step {step} loss {loss.item():.4f}", flush=True)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        picture, _ = painter.draw(min(2048, options.batch * 4))
        scale = 1 / vae.encode(picture).latent_dist.sample().std().item()
    vae.register_to_config(scaling_factor=scale)
    return scale


@torch.no_grad()
def encode_pool(vae: Any, painter: Painter, count: int, batch: int, device: str) -> tuple[Tensor, ...]:
    """Means, deviations and prompts of pictures encoded once: the encoder would take most of each step."""
    pool = []
    for _ in range(max(1, count // batch)):
        picture, which = painter.draw(batch)
        with half(device):
            latent = vae.encode(picture).latent_dist
        pool.append((latent.mean.float(), latent.std.float(), which))
    return tuple(torch.cat(part) for part in zip(*pool, strict=True))


def train_unet(
    unet: Any, text: Any, pool: tuple[Tensor, ...], ids: Tensor, scale: float, options: argparse.Namespace
) -> None:
    """Noise prediction on ``scale``d latents; the models end with an average of their weights.

    Args:
        ids: token ids of every prompt in `ALL`, and of the empty one at the end.
    """
    device = ids.device.type
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, 1000, device=device) ** 2
    kept = torch.cumprod(1 - betas, 0)
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)
    average = [parameter.detach().clone() for parameter in parameters]
    means, deviations, prompts = pool
    for step, done in progress(options.unet_steps, options.unet_seconds):
        chosen = torch.randint(len(prompts), (options.batch,), device=device)
        latent = (means[chosen] + deviations[chosen] * torch.randn_like(means[chosen])) * scale
        time_step = torch.randint(1000, (options.batch,), device=device)
        signal = kept[time_step][:, None, None, None]
        noise = torch.randn_like(latent)
        noisy = signal.sqrt() * latent + (1 - signal).sqrt() * noise
        prompt = torch.where(torch.rand(options.batch, device=device) < 0.1, len(ALL), prompts[chosen])
        with half(device):
            found = unet(noisy, time_step, text(ids[prompt]).last_hidden_state).sample.float()
        ratio = (signal / (1 - signal)).flatten()
        weight = ratio.clamp(max=5) / ratio
        loss = ((found - noise).pow(2).mean((1, 2, 3)) * weight).mean()
        rate = 1.5e-3 * min(1, (step + 1) / 500) * max(0.02, 0.5 * (1 + math.cos(math.pi * done)))
        optimise(optimizer, parameters, loss, rate)
        decay = min(0.999, (2 + step) / (11 + step))
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, [parameter.detach() for parameter in parameters], alpha=1 - decay)
        if step % 1000 == 0:
            print(f"unet step {step} loss {loss.item():.4f}", flush=True)
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)


def evaluate(pipeline: Any, count: int, steps: int, device: str) -> dict[str, int]:
    """How many of ``count`` pictures have the right colour, shape and background."""
    right = {"colour": 0, "shape": 0, "background": 0}
    for item in random.Random(1).sample(ALL, count):
        picture = _paint(pipeline, [item.prompt], steps, 3.0, 0, device, "np")[0]
        for name, ok in judge(torch.tensor(picture).permute(2, 0, 1) * 255, item).items():
            right[name] += ok
    return right


def _paint(
    pipeline: Any, prompts: list[str], steps: int, guidance: float, seed: int, device: str, kind: str
) -> Any:
    return pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=SIDE,
        width=SIDE,
        output_type=kind,
        generator=torch.Generator(device).manual_seed(seed),
    ).images


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae-seconds", type=float, default=80)
    parser.add_argument("--unet-seconds", type=float, default=330)
    parser.add_argument("--vae-steps", type=int, help="instead of seconds")
    parser.add_argument("--unet-steps", type=int, help="instead of seconds")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--pool", type=int, default=160 * 1024)
    parser.add_argument("--judged", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = make_tokenizer(options.out / "tokenizer")
    text, vae, unet = (model.to(device) for model in make_models(len(tokenizer)))
    painter = Painter(device)
    prompts = [*(item.prompt for item in ALL), ""]
    padded = tokenizer(prompts, padding="max_length", max_length=LENGTH, truncation=True)
    ids = torch.tensor(padded.input_ids, device=device)
    scale = train_vae(vae, painter, options, device)
    pool = encode_pool(vae, painter, options.pool, options.batch, device)
    train_unet(unet, text, pool, ids, scale, options)
    scheduler = EulerDiscreteScheduler(
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="trailing",
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    print(evaluate(pipeline, options.judged, 12, device), "of", options.judged)
    sheet = Image.new("RGB", (SIDE * len(DEMO), SIDE))
    for at, picture in enumerate(_paint(pipeline, list(DEMO), 12, 3.0, 7, device, "pil")):
        sheet.paste(picture, (SIDE * at, 0))
    pipeline.to("cpu").to(torch.float16).save_pretrained(options.out, safe_serialization=True)
    sheet.save(options.out / "samples.png")
    (options.out / "training.json").write_text(json.dumps({"demo": DEMO}))


if __name__ == "__main__":
    main()
