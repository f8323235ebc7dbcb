"""Texts per second on an NVIDIA GPU: the embedding plugin against sentence-transformers on torch, in fp16.

    python -m benchmarks.embeddings.gpu [--layers 12] [--size 768] [--torch-batch 256] [--output FILE.json]

Needs no network: the weights are random, in the shape of BERT base (``--layers 24 --size 1024``: BERT large),
written once to a temporary folder and read by both. Needs MLX with its CUDA back end, mlx-embeddings and
mlx-vlm; torch and sentence-transformers for the comparison. What is missing is said, and left out. The two
processes hold the GPU together and take turns; every shape is run once before it is timed. At the end the
vectors of both are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.embeddings.cpu import SUBJECTS, WORDS, compare_all, texts_of

COUNTS = (1, 32, 256, 4096)


def write_bert(folder: Path, layers: int, size: int, words: int = 30_522) -> None:
    """A sentence-transformers repository (mean pooling, normalised) with random fp16 weights."""
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, *shape: int, spread: float = 0.03) -> None:
        tensors[name] = (random.standard_normal(shape) * spread).astype(np.float16)

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrix(f"{name}.weight", outputs, inputs)
        matrix(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(size, dtype=np.float16)
        matrix(f"{name}.bias", size)

    for name, rows in (("word", words), ("position", 512), ("token_type", 2)):
        matrix(f"embeddings.{name}_embeddings.weight", rows, size)
    norm("embeddings.LayerNorm")
    for layer in range(layers):
        base = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value"):
            linear(f"{base}.{name}", size, size)
        linear(f"{base}.attention.output.dense", size, size)
        norm(f"{base}.attention.output.LayerNorm")
        linear(f"{base}.intermediate.dense", 4 * size, size)
        linear(f"{base}.output.dense", size, 4 * size)
        norm(f"{base}.output.LayerNorm")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": words, "hidden_size": size}
    config |= {"num_hidden_layers": layers, "num_attention_heads": size // 64, "intermediate_size": 4 * size}
    config |= {"max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu", "dtype": "float16"}
    config |= {"layer_norm_eps": 1e-12, "pad_token_id": 0}
    kinds = ((0, "Transformer", ""), (1, "Pooling", "1_Pooling"), (2, "Normalize", "2_Normalize"))
    prefix = "sentence_transformers.models."
    modules = [{"idx": i, "name": str(i), "path": path, "type": prefix + name} for i, name, path in kinds]
    documents = {
        "config.json": config,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
        },
    }
    for name, value in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *dict.fromkeys(WORDS)]
    numbered = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    tokenizer.add_special_tokens(vocabulary[:4])
    tokenizer.save(str(folder / "tokenizer.json"))


def agreement(folder: str) -> float:
    """The lowest cosine between both libraries' vectors of 64 mixed texts."""
    texts = texts_of("mixed", 64)
    left, right = (np.asarray(SUBJECTS[name](folder)(texts), np.float32) for name in ("ours", "torch"))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / norms).min())


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--torch-batch", type=int, default=256, help="texts in a batch of sentence-transformers"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        print("mlx has no GPU here: these are figures of the CPU.")
    os.environ["TORCH_BATCH"] = str(arguments.torch_batch)
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    pythons = {"ours": sys.executable}
    if importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("torch"):
        pythons["torch"] = sys.executable
    else:
        print("torch and sentence-transformers are not installed here: nothing to compare with.")
    with tempfile.TemporaryDirectory() as folder:
        write_bert(Path(folder), arguments.layers, arguments.size)
        rows = compare_all(pythons, folder, 4, arguments.rounds, COUNTS)
        result = {"layers": arguments.layers, "size": arguments.size, "rows": rows}
        if "torch" in pythons:
            result["lowest_cosine"] = agreement(folder)
            print(f"lowest cosine between the two: {result['lowest_cosine']:.6f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
