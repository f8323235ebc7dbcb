"""Train tiny-shapes-vlm: a SmolVLM of 4.6 million parameters on drawn pictures.

    python tests/models/training/train_vlm.py OUT                       # one H100, 9 minutes
    python tests/models/training/train_vlm.py OUT --steps 5 --batch 8   # does it run at all

Needs torch, transformers, tokenizers and scikit-learn. The folder has the layout that transformers and
mlx-vlm load.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from scenes import SIDE, TASKS, Sample, Scenes
from torch import Tensor

PATCH, MERGE = 8, 2
IMAGE_TOKENS = (SIDE // PATCH // MERGE) ** 2
SPECIAL = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<pad>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
)
PICTURE = f"{SPECIAL[3]}{SPECIAL[5]}{SPECIAL[4] * IMAGE_TOKENS}{SPECIAL[3]}"
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'] is string %}: {{message['content']}}"
    "{% else %}{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
ROPE_THETA = 10000.0


def make_tokenizer(scenes: Scenes) -> Any:
    """Byte-level BPE of 512 tokens, trained on the questions and answers themselves."""
    corpus: list[str] = []
    for task in TASKS:
        for _ in range(300):
            sample = scenes.sample(task)
            corpus += [f"User:{sample.question}", f"Assistant: {sample.answer}"]
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = byte_level(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL[3:]),
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_theta=ROPE_THETA,
        **ids,
    )
    vision = transformers.SmolVLMVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = transformers.SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=MERGE,
        image_token_id=tokenizer.convert_tokens_to_ids(SPECIAL[4]),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def make_batch(scenes: Scenes, tokenizer: Any, samples: list[Sample], device: str) -> dict[str, Tensor]:
    """Inputs and labels (-100 outside the answers), padded on the right."""
    rows = []
    for sample in samples:
        pictures = PICTURE * len(sample.pictures) or " "
        question = f"{SPECIAL[0]}User:{pictures}{sample.question}{SPECIAL[1]}\nAssistant:"
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        answer = tokenizer(f" {sample.answer}{SPECIAL[1]}", add_special_tokens=False)["input_ids"]
        rows.append((asked, answer))
    length = max(len(question) + len(answer) for question, answer in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, (question, answer) in enumerate(rows):
        end = len(question) + len(answer)
        ids[index, :end] = torch.tensor(question + answer)
        labels[index, len(question) : end] = torch.tensor(answer)
        mask[index, :end] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if pictures_of := [picture for sample in samples for picture in sample.pictures]:
        most = max(len(sample.pictures) for sample in samples)
        rendered = iter(scenes.render(pictures_of, device) / 127.5 - 1)
        pixels = torch.zeros(len(rows), most, 3, SIDE, SIDE, device=device)
        for index, sample in enumerate(samples):
            for slot in range(len(sample.pictures)):
                pixels[index, slot] = next(rendered)
        batch["pixel_values"] = pixels
        batch["pixel_attention_mask"] = torch.ones(len(rows), most, SIDE, SIDE, dtype=torch.long)
    return {name: value.to(device) for name, value in batch.items()}


def train(model: Any, scenes: Scenes, tokenizer: Any, options: argparse.Namespace, device: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.05, betas=(0.9, 0.98))
    warmup, start = max(1, min(500, options.steps // 10)), time.monotonic()
    for step in range(options.steps):
        done = max(step / options.steps, (time.monotonic() - start) / options.seconds)
        if done >= 1:
            break
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / warmup) * cosine
        samples = [scenes.sample(scenes.rng.choice(TASKS)) for _ in range(options.batch)]
        loss = model(**make_batch(scenes, tokenizer, samples, device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, options.steps // 20) == 0:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - start:.0f}s", flush=True)


@torch.no_grad()
def judge(model: Any, scenes: Scenes, tokenizer: Any, count: int, device: str) -> dict[str, float]:
    """Share of answers that are right in every token (teacher forced), by task."""
    model.eval()
    report = {}
    for task in TASKS:
        batch = make_batch(scenes, tokenizer, [scenes.sample(task, "test") for _ in range(count)], device)
        found, wanted = model(**batch).logits[:, :-1].argmax(-1), batch["labels"][:, 1:]
        right = ((found == wanted) | (wanted == -100)).all(1)
        report[task] = round(right.float().mean().item(), 4)
    return report


def save(model: Any, tokenizer: Any, report: dict[str, float], folder: Path) -> None:
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_theta"] = ROPE_THETA  # mlx-vlm does not read rope_parameters
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    processor = {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": SIDE},
        "resample": 1,
        "do_image_splitting": False,
        "max_image_size": {"longest_edge": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_pad": True,
    }
    documents = {
        "config.json": config,
        "generation_config.json": ids | {"do_sample": False},
        "preprocessor_config.json": processor,
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": IMAGE_TOKENS},
        "report.json": report,
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scenes = Scenes(options.seed)
    tokenizer = make_tokenizer(scenes)
    model = make_model(tokenizer).to(device)
    train(model, scenes, tokenizer, options, device)
    report = judge(model, scenes, tokenizer, 256 if device == "cuda" else 32, device)
    print(report)
    save(model, tokenizer, report, options.out)


if __name__ == "__main__":
    main()
