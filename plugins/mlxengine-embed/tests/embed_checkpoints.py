"""Small repositories with random weights, the same ones wherever they are written.

Only numpy, safetensors and tokenizers are needed, so that the reference script can write them in an
environment of its own. Biases and norms are random too: a module that forgets one is found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

SIZE, INNER, LAYERS, HEADS, WORDS, LONGEST = 64, 96, 3, 4, 200, 48
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
POOLINGS = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean-sqrt": "mean_sqrt_len_tokens",
    "weighted": "weightedmean",
    "last": "lasttoken",
}


class _Weights:
    """Random tensors by name, in the order in which they are asked for."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray[Any, Any]] = {}

    def matrix(self, name: str, *shape: int) -> None:
        spread = 1.6 / np.sqrt(shape[-1])
        self.tensors[name] = (self._random.standard_normal(shape) * spread).astype(np.float32)

    def table(self, name: str, rows: int) -> None:
        self.tensors[name] = self._random.standard_normal((rows, SIZE)).astype(np.float32)

    def linear(self, name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        self.matrix(f"{name}.weight", outputs, inputs)
        if bias:
            self.tensors[f"{name}.bias"] = (self._random.standard_normal(outputs) * 0.2).astype(np.float32)

    def norm(self, name: str, size: int = SIZE, bias: bool = True, around: float = 1.0) -> None:
        self.tensors[f"{name}.weight"] = (around + self._random.standard_normal(size) * 0.2).astype(
            np.float32
        )
        if bias:
            self.tensors[f"{name}.bias"] = (self._random.standard_normal(size) * 0.2).astype(np.float32)


def _bert(weights: _Weights, prefix: str = "", positions: int = 64, types: int = 2) -> None:
    for name, rows in (("word", len(VOCABULARY)), ("position", positions), ("token_type", types)):
        weights.table(f"{prefix}embeddings.{name}_embeddings.weight", rows)
    weights.norm(f"{prefix}embeddings.LayerNorm")
    for layer in range(LAYERS):
        base = f"{prefix}encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            weights.linear(f"{base}.attention.self.{name}", SIZE, SIZE)
        weights.linear(f"{base}.attention.output.dense", SIZE, SIZE)
        weights.norm(f"{base}.attention.output.LayerNorm")
        weights.linear(f"{base}.intermediate.dense", INNER, SIZE)
        weights.linear(f"{base}.output.dense", SIZE, INNER)
        weights.norm(f"{base}.output.LayerNorm")


def _modernbert(weights: _Weights, prefix: str = "") -> None:
    weights.table(f"{prefix}embeddings.tok_embeddings.weight", len(VOCABULARY))
    weights.norm(f"{prefix}embeddings.norm", bias=False)
    for layer in range(LAYERS):
        base = f"{prefix}layers.{layer}"
        if layer:
            weights.norm(f"{base}.attn_norm", bias=False)
        weights.linear(f"{base}.attn.Wqkv", 3 * SIZE, SIZE, bias=False)
        weights.linear(f"{base}.attn.Wo", SIZE, SIZE, bias=False)
        weights.norm(f"{base}.mlp_norm", bias=False)
        weights.linear(f"{base}.mlp.Wi", 2 * INNER, SIZE, bias=False)
        weights.linear(f"{base}.mlp.Wo", SIZE, INNER, bias=False)
    weights.norm(f"{prefix}final_norm", bias=False)


def _decoder(
    weights: _Weights,
    layers: int,
    norms: tuple[str, ...],
    around: float,
    heads: bool = True,
    biases: tuple[str, ...] = (),
    words: int = len(VOCABULARY),
) -> None:
    weights.table("embed_tokens.weight", words)
    for layer in range(layers):
        base, head = f"layers.{layer}", SIZE // HEADS
        for name, size in (("q", SIZE), ("k", 2 * head), ("v", 2 * head), ("o", SIZE)):
            weights.linear(f"{base}.self_attn.{name}_proj", size, SIZE, bias=name in biases)
        for name in ("q_norm", "k_norm") if heads else ():
            weights.norm(f"{base}.self_attn.{name}", head, bias=False, around=around)
        for name, outputs, inputs in (("gate", INNER, SIZE), ("up", INNER, SIZE), ("down", SIZE, INNER)):
            weights.linear(f"{base}.mlp.{name}_proj", outputs, inputs, bias=name in biases)
        for name in norms:
            weights.norm(f"{base}.{name}", bias=False, around=around)
    weights.norm("norm", bias=False, around=around)


_COMMON = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": SIZE,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {**_COMMON, "model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 64}
_BERT |= {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
_ROBERTA = {**_BERT, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "pad_token_id": 0}
_ROBERTA |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66}
_MODERNBERT = {
    **_COMMON,
    "model_type": "modernbert",
    "architectures": ["ModernBertModel"],
    "max_position_embeddings": 128,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "norm_eps": 1e-5,
    "rope_parameters": {
        "full_attention": {"rope_theta": 90000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 700.0, "rope_type": "default"},
    },
}
_QWEN3 = {
    **_COMMON,
    "model_type": "qwen3",
    "architectures": ["Qwen3Model"],
    "num_key_value_heads": 2,
    "head_dim": SIZE // HEADS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
}
_GEMMA3 = {
    **_COMMON,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3TextModel"],
    "num_hidden_layers": 7,
    "num_key_value_heads": 2,
    "head_dim": SIZE // HEADS,
    "query_pre_attn_scalar": 24,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "sliding_window": 12,
    "use_bidirectional_attention": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_parameters": {
        "full_attention": {"rope_theta": 90000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 700.0, "rope_type": "default"},
    },
}
_QWEN_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA_NORMS = (*_QWEN_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def write_tokenizer(
    folder: Path,
    kind: str,
    side: str = "right",
    longest: int = 512,
    types: bool = False,
    more: tuple[str, ...] = (),
    special: tuple[str, ...] = (),
    mask: str | None = None,
    words: Sequence[str] = VOCABULARY,
) -> None:
    """A tokenizer of whole words with special tokens in the architecture's places.

    ``more`` follow the other words; a newline is one of them where they hold it.
    """
    known = {word: i for i, word in enumerate((*words, *more))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if "\n" in more:
        newlines = pre_tokenizers.Split("\n", "isolated")
        blanks = pre_tokenizers.Split(Regex(" +|(?<=\\w)(?=[^\\w\n])|(?<=[^\\w\n])(?=\\w)"), "removed")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([newlines, blanks])
    single, pair = {
        "bert": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        "last": ("$A </s>", "$A $B </s>"),
        "plain": ("$A", "$A $B"),
    }[kind]
    specials = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=specials
    )
    tokenizer.add_special_tokens([*SPECIAL, *special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if mask is not None:
        names["mask_token"] = mask
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    settings |= {"padding_side": side, "model_input_names": inputs}
    _json(folder / "tokenizer_config.json", settings)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _save(folder: Path, config: dict[str, Any], weights: _Weights) -> None:
    _json(folder / "config.json", config)
    save_file(weights.tensors, str(folder / "model.safetensors"), {"format": "pt"})


def write_modules(
    folder: Path, pooling: dict[str, Any], *stages: str, new_names: bool = False, longest: int = LONGEST
) -> None:
    """``modules.json`` and the folders that it names; ``stages`` follow the pooling."""
    old, new = "sentence_transformers.models.", "sentence_transformers.base.modules."
    start = [("Transformer", ""), ("Pooling", "1_Pooling")]
    entries = start + [(name, f"{i}_{name}") for i, name in enumerate(stages, 2)]
    _json(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": f"{new}{name.lower()}.{name}" if new_names and name != "Pooling" else f"{old}{name}",
            }
            for i, (name, path) in enumerate(entries)
        ],
    )
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": SIZE, **pooling})
    _json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})


def _bert_with(pooling: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = _Weights(1)
        _bert(weights)
        _save(folder, dict(_BERT), weights)
        write_tokenizer(folder, "bert")
        write_modules(folder, pooling)

    return write


def _dense(folder: Path) -> None:
    _bert_with({"pooling_mode_mean_tokens": True})(folder)
    write_modules(folder, {"pooling_mode_mean_tokens": True}, "Dense", "Dense", "Normalize", new_names=True)
    for i, (inputs, outputs, activation) in enumerate(((SIZE, 40, "Tanh"), (40, 24, "GELU")), 2):
        weights = _Weights(20 + i)
        weights.linear("linear", outputs, inputs)
        settings = {"in_features": inputs, "out_features": outputs, "bias": True}
        settings["activation_function"] = f"torch.nn.modules.activation.{activation}"
        _json(folder / f"{i}_Dense" / "config.json", settings)
        save_file(weights.tensors, str(folder / f"{i}_Dense" / "model.safetensors"))
    prompts = {"query": "w1 w2 w3 ", "document": "w7 "}
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": prompts,
            "default_prompt_name": "document",
            "similarity_fn_name": "dot",
            "truncate_dim": 16,
        },
    )


def _without_prompt(folder: Path) -> None:
    _bert_with({"pooling_mode_mean_tokens": True, "include_prompt": False})(folder)


def _xlm_roberta(folder: Path) -> None:
    weights = _Weights(2)
    _bert(weights, positions=66, types=1)
    _save(folder, dict(_ROBERTA), weights)
    write_tokenizer(folder, "roberta")
    write_modules(folder, {"pooling_mode": "cls"}, "Normalize", new_names=True)


def _modern(folder: Path) -> None:
    weights = _Weights(3)
    _modernbert(weights)
    _save(folder, dict(_MODERNBERT), weights)
    write_tokenizer(folder, "bert")
    write_modules(folder, {"pooling_mode": "mean"}, new_names=True)


def _qwen(folder: Path) -> None:
    weights = _Weights(4)
    _decoder(weights, LAYERS, _QWEN_NORMS, 1.0)
    _save(folder, dict(_QWEN3), weights)
    write_tokenizer(folder, "last", side="left")
    write_modules(folder, {"pooling_mode": "lasttoken"}, "Normalize")


def _gemma(folder: Path) -> None:
    weights = _Weights(5)
    _decoder(weights, 7, _GEMMA_NORMS, 0.0)
    _save(folder, dict(_GEMMA3), weights)
    write_tokenizer(folder, "bert", side="left")
    write_modules(folder, {"pooling_mode": "mean"}, "Normalize")


class _Variant:
    """BERT's tensors under another architecture's names, without those that it lacks and with its own."""

    def __init__(self, seed: int, *rules: tuple[str, str], without: str = "^$", positions: int = 64) -> None:
        self._weights = _Weights(seed)
        _bert(self._weights, positions=positions)
        kept = {k: v for k, v in self._weights.tensors.items() if not re.search(without, k)}
        for old, new in rules:
            kept = {re.sub(old, new, key): value for key, value in kept.items()}
        self._weights.tensors = kept

    def join(self, pattern: str, parts: tuple[str, ...]) -> None:
        """Keep tensors together that differ in the part of their names that ``{}`` stands for."""
        tensors = self._weights.tensors
        for layer in range(LAYERS):
            for kind in ("weight", "bias"):
                names = [pattern.format(layer, part) + f".{kind}" for part in parts]
                if names[0] in tensors:
                    whole = np.concatenate([tensors.pop(name) for name in names])
                    tensors[pattern.format(layer, "+".join(parts)) + f".{kind}"] = whole

    def add(self, add: Callable[[_Weights], None]) -> None:
        add(self._weights)

    def rename(self, *rules: tuple[str, str]) -> None:
        for old, new in rules:
            self._weights.tensors = {re.sub(old, new, k): v for k, v in self._weights.tensors.items()}

    def write(self, folder: Path, config: dict[str, Any], kind: str = "bert", mode: str = "mean") -> None:
        _save(folder, config, self._weights)
        write_tokenizer(folder, kind)
        write_modules(folder, {"pooling_mode": mode})


_NO_TYPES = "token_type"


def _distilbert(folder: Path) -> None:
    rules = (
        (r"encoder\.layer", "transformer.layer"),
        (r"attention\.self\.query", "attention.q_lin"),
        (r"attention\.self\.key", "attention.k_lin"),
        (r"attention\.self\.value", "attention.v_lin"),
        (r"attention\.output\.dense", "attention.out_lin"),
        (r"attention\.output\.LayerNorm", "sa_layer_norm"),
        (r"intermediate\.dense", "ffn.lin1"),
        (r"\.output\.dense", ".ffn.lin2"),
        (r"\.output\.LayerNorm", ".output_layer_norm"),
    )
    config = {"dim": SIZE, "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS, "activation": "gelu"}
    config |= {"model_type": "distilbert", "architectures": ["DistilBertModel"], "pad_token_id": 0}
    config |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64, "sinusoidal_pos_embds": False}
    _Variant(31, *rules, without=_NO_TYPES).write(folder, config)


def _mpnet(folder: Path) -> None:
    rules = tuple(
        (rf"attention\.{old}", f"attention.{new}")
        for old, new in (
            (r"self\.query", "attn.q"),
            (r"self\.key", "attn.k"),
            (r"self\.value", "attn.v"),
            (r"output\.dense", "attn.o"),
            (r"output\.LayerNorm", "LayerNorm"),
        )
    )
    found = _Variant(32, *rules, without=_NO_TYPES, positions=66)
    found.add(lambda weights: weights.matrix("encoder.relative_attention_bias.weight", 32, HEADS))
    config = {**_ROBERTA, "model_type": "mpnet", "architectures": ["MPNetModel"], "pad_token_id": 0}
    del config["type_vocab_size"]
    found.write(folder, config | {"relative_attention_num_buckets": 32}, "roberta")


def _electra(folder: Path) -> None:
    found = _Variant(33, without="^embeddings")

    def add(weights: _Weights) -> None:
        for name, rows in (("word", len(VOCABULARY)), ("position", 64), ("token_type", 2)):
            weights.matrix(f"embeddings.{name}_embeddings.weight", rows, 32)
        weights.norm("embeddings.LayerNorm", 32)
        weights.linear("embeddings_project", SIZE, 32)

    found.add(add)
    names = {"model_type": "electra", "architectures": ["ElectraModel"], "embedding_size": 32}
    found.write(folder, {**_BERT, **names}, mode="cls")


def _albert(folder: Path) -> None:
    found = _Variant(34, without=r"^embeddings|layer\.2")
    found.rename(
        (r"attention\.self\.", "attention."),
        (r"attention\.output\.", "attention."),
        (r"intermediate\.dense", "ffn"),
        (r"\.output\.dense", ".ffn_output"),
        (r"\.output\.LayerNorm", ".full_layer_layer_norm"),
        (r"encoder\.layer\.(\d)\.", r"encoder.albert_layer_groups.\1.albert_layers.0."),
    )

    def add(weights: _Weights) -> None:
        for name, rows in (("word", len(VOCABULARY)), ("position", 64), ("token_type", 2)):
            weights.matrix(f"embeddings.{name}_embeddings.weight", rows, 32)
        weights.norm("embeddings.LayerNorm", 32)
        weights.linear("encoder.embedding_hidden_mapping_in", SIZE, 32)

    found.add(add)
    names = {"model_type": "albert", "architectures": ["AlbertModel"], "embedding_size": 32}
    names |= {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 1, "hidden_act": "gelu_new"}
    found.write(folder, {**_BERT, **names})


def _ernie(folder: Path) -> None:
    found = _Variant(35)
    found.add(lambda weights: weights.table("embeddings.task_type_embeddings.weight", 3))
    names = {"model_type": "ernie", "architectures": ["ErnieModel"], "use_task_id": True}
    found.write(folder, {**_BERT, **names, "task_type_vocab_size": 3})


def _data2vec(folder: Path) -> None:
    found = _Variant(37, without="^$", positions=66)
    config = {**_ROBERTA, "model_type": "data2vec-text", "architectures": ["Data2VecTextModel"]}
    found.write(folder, config | {"type_vocab_size": 2}, "roberta")


def _roformer(folder: Path) -> None:
    found = _Variant(38, without="position_emb|^embeddings")

    def add(weights: _Weights) -> None:
        for name, rows in (("word", len(VOCABULARY)), ("token_type", 2)):
            weights.matrix(f"embeddings.{name}_embeddings.weight", rows, 32)
        weights.norm("embeddings.LayerNorm", 32)
        weights.linear("embeddings_project", SIZE, 32)

    found.add(add)
    names = {"model_type": "roformer", "architectures": ["RoFormerModel"], "embedding_size": 32}
    found.write(folder, {**_BERT, **names, "rotary_value": False})


def _jina(folder: Path) -> None:
    found = _gated(43, biased=False, without="position_emb|^$", keeps=True)
    found.rename((r"mlp\.up_proj", "mlp.fc1"), (r"mlp\.down_proj", "mlp.fc2"))
    config = {**_ROBERTA, "model_type": "jina_embeddings_v3", "architectures": ["JinaEmbeddingsV3Model"]}
    rope = {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}, "type_vocab_size": 2}
    found.write(folder, config | rope, "roberta")


def _jina_v2(normed: bool) -> Callable[[Path], None]:
    """jina-embeddings-v2's own layout; ``normed`` that of its model for code."""

    def write(folder: Path) -> None:
        found = _Variant(45 + normed, without="position_emb|intermediate|\\d\\.output")

        def add(weights: _Weights) -> None:
            for layer in range(LAYERS):
                base = f"encoder.layer.{layer}"
                first, last = ("up_gated_layer", "down_layer") if normed else ("gated_layers", "wo")
                weights.linear(f"{base}.mlp.{first}", 2 * INNER, SIZE, bias=False)
                weights.linear(f"{base}.mlp.{last}", SIZE, INNER)
                own = f"{base}.attention.self.layer_norm"
                norms = (f"{own}_q", f"{own}_k", f"{base}.layer_norm_1", f"{base}.layer_norm_2")
                for name in norms if normed else (f"{base}.mlp.layernorm",):
                    weights.norm(name)

        found.add(add)
        code = "jinaai/jina-bert-implementation--{}"
        config = {**_BERT, "position_embedding_type": "alibi", "emb_pooler": "mean"}
        config["feed_forward_type"] = "reglu" if normed else "geglu"
        config["auto_map"] = {
            "AutoConfig": code.format("configuration_bert.JinaBertConfig"),
            "AutoModel": code.format("modeling_bert.JinaBertModel"),
        }
        found.write(folder, config | {"architectures": ["JinaBertForMaskedLM"]})

    return write


_TASKS = ("retrieval.query", "retrieval.passage", "text-matching")


def _jina_published(folder: Path) -> None:
    """jina-embeddings-v3's own layout, with an addition to each weight for each task."""
    _jina(folder)
    stored = load_file(str(folder / "model.safetensors"))
    weights = _Weights(47)
    for name in [key for key in stored if "self_attn.q_proj" in key]:
        parts = (stored.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv")
        stored[name.replace("self_attn.q_proj", "mixer.Wqkv")] = np.concatenate(list(parts))
    for old, new in _FLASH_NAMES:
        stored = {re.sub(new, old, key): value for key, value in stored.items()}
    for name, value in stored.items():
        if value.ndim == 1:
            weights.tensors[f"roberta.{name}"] = value
            continue
        base = f"roberta.{name.removesuffix('.weight')}.parametrizations.weight"
        weights.tensors[f"{base}.original"] = value
        (rows, columns), table = value.shape, "embeddings" in name
        weights.matrix(f"{base}.0.lora_A", len(_TASKS), *((rows, 4) if table else (4, columns)))
        weights.matrix(f"{base}.0.lora_B", len(_TASKS), *((4, columns) if table else (rows, 4)))
    config = {**json.loads((folder / "config.json").read_text()), "model_type": "xlm-roberta"}
    del config["rope_parameters"]
    config |= {"position_embedding_type": "rotary", "rotary_emb_base": 20000.0, "use_flash_attn": True}
    config |= {"lora_adaptations": list(_TASKS), "lora_rank": 4, "lora_alpha": 1, "lora_dropout_p": 0.0}
    code = "jinaai/xlm-roberta-flash-implementation--{}"
    config["auto_map"] = {
        "AutoConfig": code.format("configuration_xlm_roberta.XLMRobertaFlashConfig"),
        "AutoModel": code.format("modeling_lora.XLMRobertaLoRA"),
    }
    _save(folder, config, weights)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] |= {"type": "custom_st.Transformer", "kwargs": ["task"]}
    _json(folder / "modules.json", modules)
    prompts = {"retrieval.query": "w1 w2 w3 ", "retrieval.passage": "w7 ", "text-matching": ""}
    _json(folder / "config_sentence_transformers.json", {"prompts": prompts})


# The names of transformers as patterns, and of jina-embeddings-v3's repository.
_FLASH_NAMES = (
    ("emb_ln", r"embeddings\.LayerNorm"),
    ("encoder.layers", r"^layers"),
    ("mixer.out_proj", r"self_attn\.o_proj"),
    ("norm1", r"post_attention_layernorm"),
    ("norm2", r"post_mlp_layernorm"),
)


def merged(folder: Path, target: Path, task: str | None) -> Path:
    """jina-embeddings-v3 with one task's additions in its weights, as transformers' class takes it."""
    _jina(target)
    (target / "config_sentence_transformers.json").write_bytes(
        (folder / "config_sentence_transformers.json").read_bytes()
    )
    found, end = load_file(str(folder / "model.safetensors")), ".parametrizations.weight.original"
    plain = {key: value for key, value in found.items() if "parametrizations" not in key}
    for key in found:
        if key.endswith(end):
            name, value = key.removesuffix(end), found[key]
            if task is not None:
                first, last = (
                    found[f"{name}.parametrizations.weight.0.lora_{x}"][_TASKS.index(task)] for x in "AB"
                )
                value = value + (first @ last if "embeddings" in name else last @ first) / 4
            plain[f"{name}.weight"] = value
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for key, value in plain.items():
        name = key.removeprefix("roberta.")
        for own, pattern in _FLASH_NAMES:
            name = name.replace(own, re.sub(r"[\\^]", "", pattern))
        parts = np.split(value, 3) if "mixer.Wqkv" in name else [value]
        for part, piece in zip("qkv", parts, strict=False):
            tensors[name.replace("mixer.Wqkv", f"self_attn.{part}_proj")] = piece
    save_file(tensors, str(target / "model.safetensors"), {"format": "pt"})
    return target


def _nomic_moe(folder: Path) -> None:
    """nomic-embed-text-v2-moe's own layout: every second layer has experts."""
    found = _Variant(48, without="position_emb|layer\\.1\\.(intermediate|output)")
    found.join("encoder.layer.{}.attention.self.{}", ("query", "key", "value"))
    found.rename(
        (r"attention\.self\.query\+key\+value", "attn.Wqkv"),
        (r"attention\.output\.dense", "attn.out_proj"),
        (r"attention\.output\.LayerNorm", "norm1"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"\.output\.dense", ".mlp.fc2"),
        (r"\.output\.LayerNorm", ".norm2"),
        (r"^encoder\.layer", "encoder.layers"),
        (r"^embeddings\.LayerNorm", "emb_ln"),
    )

    def add(weights: _Weights) -> None:
        base = "encoder.layers.1"
        weights.norm(f"{base}.norm2")
        weights.linear(f"{base}.mlp.router.layer", 4, SIZE, bias=False)
        for name in ("w1", "w2"):
            weights.matrix(f"{base}.mlp.experts.mlp.{name}", 4 * INNER, SIZE)
        weights.matrix(f"{base}.mlp.experts.bias", SIZE)

    found.add(add)
    config = {"model_type": "nomic_bert", "architectures": ["NomicBertModel"], "n_embd": SIZE}
    config |= {"n_inner": INNER, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "type_vocab_size": 2}
    config |= {"vocab_size": len(VOCABULARY), "layer_norm_epsilon": 1e-5, "rotary_emb_base": 500.0}
    config |= {"activation_function": "gelu", "qkv_proj_bias": True, "mlp_fc1_bias": True, "num_experts": 4}
    config |= {"mlp_fc2_bias": True, "moe_top_k": 2, "moe_every_n_layers": 2, "expert_choice_router": False}
    code = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"
    found.write(folder, config | {"moe_impl": "megablocks", "ffn_div": 1, "auto_map": {"AutoModel": code}})


def _deberta_first(folder: Path) -> None:
    """DeBERTa's first version, which keeps a head's three projections together."""
    found = _Variant(49, without="position_emb|token_type|self\\.(query|key|value)")

    def add(weights: _Weights) -> None:
        weights.table("encoder.rel_embeddings.weight", 2 * 20)
        for layer in range(LAYERS):
            base = f"encoder.layer.{layer}.attention.self"
            for name, outputs, bias in (
                ("in_proj", 3 * SIZE, False),
                ("pos_proj", SIZE, False),
                ("pos_q_proj", SIZE, True),
            ):
                weights.linear(f"{base}.{name}", outputs, SIZE, bias=bias)
            for name in ("q_bias", "v_bias"):
                weights.matrix(f"{base}.{name}", SIZE)

    found.add(add)
    config = {**_BERT, "model_type": "deberta", "architectures": ["DebertaModel"], "type_vocab_size": 0}
    config |= {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False}
    config |= {"max_relative_positions": 20, "layer_norm_eps": 1e-7, "pooler_hidden_size": SIZE}
    found.write(folder, config)


def _deberta_variant(shared: bool, prefix: str = "") -> tuple[_Variant, dict[str, Any]]:
    found = _Variant(36 + shared, without="position_emb|token_type")
    found.rename((r"attention\.self\.(\w+)\.", r"attention.self.\1_proj."))

    def add(weights: _Weights) -> None:
        weights.table("encoder.rel_embeddings.weight", 2 * (8 if shared else 20))
        weights.norm("encoder.LayerNorm")
        for layer in range(0 if shared else LAYERS):
            for name in ("key", "query"):
                weights.linear(f"encoder.layer.{layer}.attention.self.pos_{name}_proj", SIZE, SIZE)

    found.add(add)
    found.rename(("^", prefix))
    config = {**_BERT, "model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "type_vocab_size": 0}
    config |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    config |= {"norm_rel_ebd": "layer_norm", "share_att_key": shared, "max_relative_positions": -1}
    buckets = {"position_buckets": 8} if shared else {"max_relative_positions": 20}
    return found, {**config, **buckets, "layer_norm_eps": 1e-7, "pooler_hidden_size": SIZE}


def _deberta(folder: Path) -> None:
    found, config = _deberta_variant(shared=True)
    found.write(folder, config, mode="cls")


def _deberta_apart(folder: Path) -> None:
    found, config = _deberta_variant(shared=False)
    found.write(folder, config)


def _gated(seed: int, biased: bool, without: str = "position_emb", keeps: bool = False) -> _Variant:
    """Rotary positions and a gated feed-forward under the names of transformers."""
    found = _Variant(
        seed,
        (r"encoder\.layer", "layers"),
        (r"attention\.self\.query", "self_attn.q_proj"),
        (r"attention\.self\.key", "self_attn.k_proj"),
        (r"attention\.self\.value", "self_attn.v_proj"),
        (r"attention\.output\.dense", "self_attn.o_proj"),
        (r"attention\.output\.LayerNorm", "post_attention_layernorm"),
        (r"intermediate\.dense", "mlp.up_proj"),
        (r"\.output\.dense", ".mlp.down_proj"),
        (r"\.output\.LayerNorm", ".post_mlp_layernorm"),
        without=without
        + ("" if keeps else r"|intermediate\.dense\.bias" if biased else r"|(query|key|value|dense)\.bias"),
    )
    if keeps:
        return found

    def add(weights: _Weights) -> None:
        for layer in range(LAYERS):
            weights.linear(f"layers.{layer}.mlp.gate_proj", INNER, SIZE, bias=False)

    found.add(add)
    return found


_NOMIC = {**_BERT, "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "hidden_act": "silu"}
_NOMIC |= {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}, "head_dim": SIZE // HEADS}
_GTE = {**_BERT, "model_type": "gte", "architectures": ["GteModel"], "pad_token_id": 0}
_GTE |= {"rope_parameters": {"rope_theta": 160000.0, "rope_type": "default"}}


def _nomic(folder: Path) -> None:
    _gated(40, biased=False).write(folder, dict(_NOMIC))


def _nomic_published(folder: Path) -> None:
    """The same under the names of the repository's own code."""
    found = _gated(40, biased=False)
    found.join("layers.{}.self_attn.{}_proj", ("q", "k", "v"))
    found.rename(
        (r"self_attn\.q\+k\+v_proj", "attn.Wqkv"),
        (r"self_attn\.o_proj", "attn.out_proj"),
        (r"mlp\.up_proj", "mlp.fc11"),
        (r"mlp\.gate_proj", "mlp.fc12"),
        (r"mlp\.down_proj", "mlp.fc2"),
        ("post_attention_layernorm", "norm1"),
        ("post_mlp_layernorm", "norm2"),
        (r"^layers", "encoder.layers"),
        (r"^embeddings\.LayerNorm", "emb_ln"),
    )
    found.write(folder, dict(_NOMIC))


def _gte(folder: Path) -> None:
    _gated(41, biased=True).write(folder, dict(_GTE), mode="cls")


def gte_sparse(folder: Path) -> None:
    """The same with a weight for each token, as gte-multilingual-base has it."""
    _gte(folder)
    weights = _Weights(44)
    weights.linear("classifier", 1, SIZE)
    weights.tensors |= {f"new.{k}": v for k, v in load_file(str(folder / "model.safetensors")).items()}
    config = json.loads((folder / "config.json").read_text())
    _save(folder, config | {"architectures": ["NewForTokenClassification"]}, weights)


def _gte_published(folder: Path) -> None:
    """The same under the names of the repository's own code."""
    found = _gated(41, biased=True)
    found.join("layers.{}.self_attn.{}_proj", ("q", "k", "v"))
    found.join("layers.{}.mlp.{}_proj", ("up", "gate"))
    found.rename(
        (r"self_attn\.q\+k\+v_proj", "attention.qkv_proj"),
        (r"self_attn\.o_proj", "attention.o_proj"),
        (r"mlp\.up\+gate_proj", "mlp.up_gate_proj"),
        ("post_attention_layernorm", "attn_ln"),
        ("post_mlp_layernorm", "mlp_ln"),
        (r"^layers", "encoder.layer"),
    )
    found.write(folder, dict(_GTE), mode="cls")


def _gte_scaled(folder: Path) -> None:
    """The repository's own configuration, whose positions are scaled."""
    found = _gated(42, biased=True)
    config = {
        **_GTE,
        "model_type": "new",
        "rope_theta": 500.0,
        "rope_scaling": {"type": "ntk", "factor": 3.0},
    }
    del config["rope_parameters"]
    found.write(folder, config, mode="cls")


def for_transformers(name: str, folder: Path) -> None:
    """Say in transformers' own terms what its class does not read in the repository's."""
    if name == "llama-bidirectional":
        own = {"model_type": "llama", "architectures": ["LlamaModel"], "is_causal": False}
        _json(folder / "config.json", json.loads((folder / "config.json").read_text()) | own)
    if name == "gte-scaled":
        # Its linear scaling divides angles too; the base is multiplied beforehand.
        scaled = {"rope_type": "linear", "rope_theta": 1500.0, "factor": 3.0 ** (2 / (SIZE // HEADS))}
        config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": scaled}
        del config["rope_scaling"], config["rope_theta"]
        _json(folder / "config.json", config | {"model_type": "gte"})


def _language_model(
    seed: int,
    kind: str,
    mode: str = "lasttoken",
    heads: bool = False,
    biases: tuple[str, ...] = (),
    **settings: Any,
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = _Weights(seed)
        _decoder(weights, LAYERS, _QWEN_NORMS, 1.0, heads=heads, biases=biases)
        config = {**_QWEN3, "model_type": kind, "architectures": [f"{kind.title()}Model"], **settings}
        _save(folder, config, weights)
        write_tokenizer(folder, "last", side="left" if mode == "lasttoken" else "right")
        write_modules(folder, {"pooling_mode": mode}, "Normalize")

    return write


_LLAMA3 = {"rope_theta": 500.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
_LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def _bidirectional(folder: Path) -> None:
    """NVIDIA's llama that reads both ways, with Llama 3.1's positions."""
    _language_model(65, "llama_bidirec", mode="mean", rope_parameters=_LLAMA3)(folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"}
    _json(folder / "config.json", config | {"pooling": "avg", "temperature": 0.2, "auto_map": classes})


def _gemma2(folder: Path) -> None:
    weights = _Weights(66)
    _decoder(weights, LAYERS, _GEMMA_NORMS, 0.0, heads=False)
    config = {**_QWEN3, "model_type": "gemma2", "architectures": ["Gemma2Model"], "sliding_window": 9}
    config |= {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0}
    _save(folder, config | {"hidden_activation": "gelu_pytorch_tanh"}, weights)
    write_tokenizer(folder, "last", side="left")
    write_modules(folder, {"pooling_mode": "lasttoken"}, "Normalize")


def _t5(seed: int, kind: str, gated: bool, each: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = _Weights(seed)
        weights.table("shared.weight", len(VOCABULARY))
        for layer in range(LAYERS):
            base = f"encoder.block.{layer}.layer"
            for name in "qkvo":
                inputs, outputs = (80, SIZE) if name == "o" else (SIZE, 80)
                weights.linear(f"{base}.0.SelfAttention.{name}", outputs, inputs, bias=False)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                weights.linear(f"{base}.1.DenseReluDense.{name}", INNER, SIZE, bias=False)
            weights.linear(f"{base}.1.DenseReluDense.wo", SIZE, INNER, bias=False)
            weights.norm(f"{base}.0.layer_norm", bias=False)
            weights.norm(f"{base}.1.layer_norm", bias=False)
        for layer in range(LAYERS if each else 1):
            name = f"encoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
            weights.matrix(name, 16, HEADS)
        weights.norm("encoder.final_layer_norm", bias=False)
        config = {
            "model_type": kind,
            "architectures": [f"{'UM' if each else ''}T5EncoderModel"],
            "d_model": SIZE,
            "d_ff": INNER,
        }
        config |= {"d_kv": 20, "num_heads": HEADS, "num_layers": LAYERS, "vocab_size": len(VOCABULARY)}
        config |= {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40}
        config |= {
            "feed_forward_proj": "gated-gelu" if gated else "relu",
            "pad_token_id": 0,
            "eos_token_id": 2,
        }
        _save(folder, config | {"is_encoder_decoder": True}, weights)
        write_tokenizer(folder, "last")
        write_modules(folder, {"pooling_mode": "mean"}, "Normalize")

    return write


def _bert_reranker(folder: Path) -> None:
    weights = _Weights(6)
    _bert(weights, "bert.")
    weights.linear("bert.pooler.dense", SIZE, SIZE)
    weights.linear("classifier", 1, SIZE)
    names = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    identity = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    _save(folder, {**_BERT, **names, **identity}, weights)
    write_tokenizer(folder, "bert", longest=LONGEST, types=True)


def _prompted_reranker(folder: Path) -> None:
    _bert_reranker(folder)
    prompts = {"prompts": {"question": "w9 w8 w7 ", "other": "w1 "}, "default_prompt_name": "question"}
    _json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **prompts})
    module = "sentence_transformers.base.modules.transformer.Transformer"
    _json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": module}])
    task = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    outputs = {"text": {"method": "forward", "method_output_name": "logits"}}
    _json(folder / "sentence_bert_config.json", {**task, "modality_config": outputs})


def _roberta_reranker(folder: Path) -> None:
    weights = _Weights(7)
    _bert(weights, "roberta.", positions=66, types=1)
    weights.linear("classifier.dense", SIZE, SIZE)
    weights.linear("classifier.out_proj", 1, SIZE)
    names = {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    _save(folder, {**_ROBERTA, **names}, weights)
    write_tokenizer(folder, "roberta", longest=LONGEST)


def _flash_reranker(folder: Path) -> None:
    """`_roberta_reranker` in the layout of jina-reranker-v2, whose configuration names a class alone."""
    _roberta_reranker(folder)
    stored = load_file(str(folder / "model.safetensors"))
    for key in [key for key in stored if "attention.self.query" in key]:
        parts = (stored.pop(key.replace("query", part)) for part in ("query", "key", "value"))
        stored[key.replace("attention.self.query", "mixer.Wqkv")] = np.concatenate(list(parts))
    names = (
        (r"encoder\.layer\.", "encoder.layers."),
        (r"embeddings\.LayerNorm", "emb_ln"),
        (r"attention\.output\.dense", "mixer.out_proj"),
        (r"attention\.output\.LayerNorm", "norm1"),
        (r"output\.LayerNorm", "norm2"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"(?<!attention\.)output\.dense", "mlp.fc2"),
    )
    for old, new in names:
        stored = {re.sub(old, new, key): value for key, value in stored.items()}
    weights = _Weights(7)
    weights.tensors = stored
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    config["auto_map"] = {
        "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": "modeling_xlm_roberta.XLMRobertaModel",
        "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
    }
    _save(folder, {**config, "num_labels": 1, "use_flash_attn": True}, weights)


def _modern_reranker(folder: Path) -> None:
    weights = _Weights(8)
    _modernbert(weights, "model.")
    weights.linear("head.dense", SIZE, SIZE, bias=False)
    weights.norm("head.norm", bias=False)
    weights.linear("classifier", 1, SIZE)
    names = {"architectures": ["ModernBertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    _save(folder, {**_MODERNBERT, **names, "classifier_pooling": "mean"}, weights)
    write_tokenizer(folder, "bert", longest=LONGEST)


def _static(folder: Path) -> None:
    """As sentence-transformers saves it."""
    weights = _Weights(60)
    weights.table("embedding.weight", len(VOCABULARY))
    (folder / "0_StaticEmbedding").mkdir()
    save_file(weights.tensors, str(folder / "0_StaticEmbedding" / "model.safetensors"))
    write_tokenizer(folder / "0_StaticEmbedding", "bert")
    (folder / "0_StaticEmbedding" / "tokenizer_config.json").unlink()
    module = {"idx": 0, "name": "0", "path": "0_StaticEmbedding"}
    _json(folder / "modules.json", [module | {"type": "sentence_transformers.models.StaticEmbedding"}])


def _model2vec(folder: Path) -> None:
    """As model2vec saves it, with fewer rows than tokens and a weight for each token."""
    weights = _Weights(61)
    weights.table("embeddings", 50)
    random = np.random.default_rng(62)
    weights.tensors["mapping"] = random.integers(0, 50, len(VOCABULARY)).astype(np.int64)
    weights.tensors["weights"] = random.random(len(VOCABULARY)).astype(np.float32)
    settings = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    _save(folder, settings | {"hidden_dim": SIZE, "seq_length": 1000000, "apply_zipf": True}, weights)
    write_tokenizer(folder, "bert")
    names = (("StaticEmbedding", "."), ("Normalize", "1_Normalize"))
    kind = "sentence_transformers.models."
    entries = [{"idx": i, "name": str(i), "path": p, "type": kind + n} for i, (n, p) in enumerate(names)]
    _json(folder / "modules.json", entries)


def _scorer(
    base: Callable[[Path], None], prefix: str, head: Callable[[_Weights], None], name: str, **settings: Any
) -> Callable[[Path], None]:
    """An embedder's repository with a head; ``prefix`` stands before the encoder's own tensors."""

    def write(folder: Path) -> None:
        base(folder)
        (folder / "modules.json").unlink()
        (folder / "sentence_bert_config.json").unlink()
        weights = _Weights(70)
        stored = load_file(str(folder / "model.safetensors"))
        weights.tensors = {prefix + key: value for key, value in stored.items()}
        head(weights)
        config = json.loads((folder / "config.json").read_text())
        names = {"architectures": [f"{name}ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
        _save(folder, config | names | settings, weights)
        last = name.startswith("Qwen")
        kind = config["model_type"].removesuffix("-v2")
        pairs = "bert" if kind in ("bert", "electra", "albert", "deberta") else "roberta"
        write_tokenizer(folder, "last" if last else pairs, longest=LONGEST, types=pairs == "bert")

    return write


_JUDGE_WORDS = ("yes", "no", "Yes", "A", "B", ":", "\n", "Given", "Judge", "Instruct", "Query", "Document")
_TURNS = ("<|im_start|>", "<|im_end|>")
# An instruction, whose default is the template's, the query, the document, and a prefilled answer.
_JUDGE_TEMPLATE = """\
{%- set told = messages | selectattr("role", "eq", "system") | map(attribute="content") | list -%}
{%- set q = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set d = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}
<s>{{ told[0] if told else "w1 w2" }}
w3 {{ q }}
w4 {{ d }} w5</s>{{ suffix }}"""


def _judge(
    seed: int, kind: str, tied: bool = True, norms: float = 1.0, **settings: Any
) -> Callable[[Path], None]:
    """A language model with the words that it scores with."""

    def write(folder: Path) -> None:
        words = (*_JUDGE_WORDS, *_TURNS)
        weights, count = _Weights(seed), len(VOCABULARY) + len(words)
        _decoder(weights, LAYERS, _QWEN_NORMS, norms, heads=kind == "qwen3", words=count)
        weights.tensors = {f"model.{name}": value for name, value in weights.tensors.items()}
        if not tied:
            weights.table("lm_head.weight", count)
        config = {**_QWEN3, "model_type": kind, "architectures": [f"{kind.title()}ForCausalLM"]}
        config |= {"vocab_size": count, "tie_word_embeddings": tied, "max_position_embeddings": 512}
        _save(folder, config | settings, weights)
        write_tokenizer(folder, "plain", side="left", longest=LONGEST, more=words, special=_TURNS)

    return write


def _word_judge(seed: int, no: int | None, message: bool, tied: bool) -> Callable[[Path], None]:
    """One with sentence-transformers' files."""

    def write(folder: Path) -> None:
        _judge(seed, "qwen3", tied=tied)(folder)
        start = "sentence_transformers."
        kinds = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
        _json(
            folder / "modules.json",
            [
                {"idx": i, "name": str(i), "path": path, "type": start + kind}
                for i, (path, kind) in enumerate(zip(("", "1_LogitScore"), kinds, strict=True))
            ],
        )
        _json(folder / "1_LogitScore" / "config.json", {"true_token_id": 14, "false_token_id": no})
        outputs = {"method": "forward", "method_output_name": "logits"}
        settings: dict[str, Any] = {
            "transformer_task": "text-generation",
            "module_output_name": "causal_logits",
        }
        settings |= {"modality_config": {"text": outputs}}
        if message:
            settings["modality_config"]["message"] = {**outputs, "format": "flat"}
            settings["processing_kwargs"] = {"chat_template": {"suffix": " w6 w7"}}
            (folder / "chat_template.jinja").write_text(_JUDGE_TEMPLATE)
        _json(folder / "sentence_bert_config.json", settings)
        own = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
        _json(folder / "config_sentence_transformers.json", own)

    return write


def _head(dense: str, last: str, labels: int = 1) -> Callable[[_Weights], None]:
    def add(weights: _Weights) -> None:
        if dense:
            weights.linear(dense, SIZE, SIZE)
        weights.linear(last, labels, SIZE, bias=bool(dense))

    return add


def _masked(
    base: Callable[[Path], None],
    prefix: str,
    names: tuple[str, str, str],
    *,
    biased: bool = True,
    tied: str | None = None,
    **pooling: str,
) -> Callable[[Path], None]:
    """An embedder's repository with the head of a masked language model and its sparse pooling.

    ``names`` are those of the head's dense layer, norm and bias; ``tied`` one of a decoder that is not tied.
    """

    def write(folder: Path) -> None:
        base(folder)
        weights = _Weights(90)
        stored = load_file(str(folder / "model.safetensors"))
        weights.tensors = {prefix + key: value for key, value in stored.items()}
        weights.linear(names[0], SIZE, SIZE, bias=biased)
        weights.norm(names[1], bias=biased)
        # Shifted down, so that most terms say nothing.
        random = np.random.default_rng(91).standard_normal(len(VOCABULARY))
        weights.tensors[names[2]] = (random - 9).astype(np.float32)
        config = json.loads((folder / "config.json").read_text())
        if tied is not None:
            weights.table(f"{tied}.weight", len(VOCABULARY))
            weights.tensors[f"{tied}.bias"] = weights.tensors[names[2]]
            config["tie_word_embeddings"] = False
        name = config["architectures"][0].replace("Model", "ForMaskedLM")
        _save(folder, config | {"architectures": [name]}, weights)
        new = "sentence_transformers.sparse_encoder.models."
        kinds = (("MLMTransformer.MLMTransformer", ""), ("SpladePooling.SpladePooling", "1_SpladePooling"))
        entries = [{"idx": i, "name": str(i), "path": p, "type": new + k} for i, (k, p) in enumerate(kinds)]
        _json(folder / "modules.json", entries)
        settings = {"pooling_strategy": "max", "activation_function": "relu", **pooling}
        _json(folder / "1_SpladePooling" / "config.json", settings | {"word_embedding_dimension": None})
        own = {
            "model_type": "SparseEncoder",
            "similarity_fn_name": "dot",
            "prompts": {"query": "", "document": ""},
        }
        _json(folder / "config_sentence_transformers.json", own)

    return write


def _routed(folder: Path) -> None:
    """Documents by a masked language model, queries by a weight for each token."""
    document, query = folder / "document_0_MLMTransformer", folder / "query_0_SparseStaticEmbedding"
    _masked(_PLAIN, "bert.", _CLS, activation_function="log1p_relu")(document)
    (document / "1_SpladePooling").rename(folder / "document_1_SpladePooling")
    for name in ("modules.json", "1_Pooling/config.json"):
        (document / name).unlink()
    (document / "config_sentence_transformers.json").rename(folder / "config_sentence_transformers.json")
    query.mkdir()
    write_tokenizer(query, "bert", longest=LONGEST)
    weights = np.abs(np.random.default_rng(92).standard_normal(len(VOCABULARY))).astype(np.float32)
    weights[:100:3] = 0
    save_file({"weight": weights}, str(query / "model.safetensors"))
    _json(query / "config.json", {"frozen": False})
    st = "sentence_transformers.sparse_encoder.models."
    kinds = {"document_0_MLMTransformer": "MLMTransformer.MLMTransformer"}
    kinds |= {"document_1_SpladePooling": "SpladePooling.SpladePooling"}
    kinds |= {"query_0_SparseStaticEmbedding": "SparseStaticEmbedding.SparseStaticEmbedding"}
    names = list(kinds)
    config = {"types": {name: st + kind for name, kind in kinds.items()}}
    config |= {"structure": {"query": names[2:], "document": names[:2]}}
    _json(folder / "router_config.json", config | {"parameters": {"default_route": "document"}})
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
    _json(folder / "modules.json", [module])


_CLS = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
_LM = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
_LATE_WORDS = ("[Q] ", "[D] ", "<mask>", ",", ".")


def _late(
    base: Callable[[Path], None], own: dict[str, Any], *, native: dict[str, Any] | None = None
) -> Callable[[Path], None]:
    """An embedder's repository that makes token vectors, with PyLate's files, or with modules of its own."""

    def write(folder: Path) -> None:
        base(folder)
        words = _LATE_WORDS if native is None else ("<mask>", ",", ".")
        # The new words take the places of the last ones.
        kept = VOCABULARY[: len(VOCABULARY) - len(words)]
        write_tokenizer(folder, "bert", more=words, special=("<mask>",), mask="<mask>", words=kept)
        st = "sentence_transformers.models."
        dense = "pylate.models.Dense.Dense" if native is None else f"{st}Dense"
        kinds = [(f"{st}Transformer", ""), (dense, "1_Dense")]
        if native is not None:
            mask = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
            kinds += [(mask, "2_MultiVectorMask"), (f"{st}Normalize", "3_Normalize")]
            _json(folder / "2_MultiVectorMask" / "config.json", {"skiplist_words": ["w3", ","], **native})
            outputs = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
            _json(folder / "3_Normalize" / "config.json", outputs)
        entries = [{"idx": i, "name": str(i), "path": p, "type": k} for i, (k, p) in enumerate(kinds)]
        _json(folder / "modules.json", entries)
        weights = _Weights(95)
        weights.linear("linear", 16, SIZE, bias=False)
        settings = {"in_features": SIZE, "out_features": 16, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        if native is not None:
            settings["module_input_name"] = "token_embeddings"
        _json(folder / "1_Dense" / "config.json", settings)
        save_file(weights.tensors, str(folder / "1_Dense" / "model.safetensors"))
        _json(folder / "config_sentence_transformers.json", own)
        if native is not None:
            expansion = {"strategy": "min", "attend": True, "length": 12, "token": "w5"}
            lengths = {"query_length": 20, "document_length": 30, "query_expansion": expansion}
            _json(folder / "sentence_bert_config.json", {"max_seq_length": LONGEST, **lengths})

    return write


def _stanford(folder: Path) -> None:
    """ColBERT's own layout: the projection among BERT's tensors, the settings in a file of its own."""
    weights = _Weights(96)
    _bert(weights, "bert.")
    weights.linear("linear", 16, SIZE, bias=False)
    _save(folder, {**_BERT, "architectures": ["HF_ColBERT"]}, weights)
    words = ("[unused0]", "[unused1]", "<mask>", ",", ".")
    kept = VOCABULARY[: len(VOCABULARY) - len(words)]
    special = ("[unused0]", "[unused1]", "<mask>")
    write_tokenizer(folder, "bert", longest=LONGEST, more=words, special=special, mask="<mask>", words=kept)
    settings = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "dim": 16}
    settings |= {"doc_token": "[D]", "query_maxlen": 16, "doc_maxlen": 40, "mask_punctuation": True}
    _json(folder / "artifact.metadata", settings | {"attend_to_mask_tokens": False, "similarity": "cosine"})


def _m3(folder: Path) -> None:
    """BGE-M3 with its two further outputs, as a conversion keeps them."""
    _xlm_roberta(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    _json(folder / "tokenizer_config.json", settings | {"cls_token": "<s>"})
    for name, outputs, seed in (("sparse_linear", 1, 97), ("colbert_linear", SIZE, 98)):
        weights = _Weights(seed)
        weights.linear(name, outputs, SIZE)
        tensors = {key.partition(".")[2]: value for key, value in weights.tensors.items()}
        save_file(tensors, str(folder / f"{name}.safetensors"))


_PYLATE = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16}
_PYLATE |= {"document_length": 40, "attend_to_expansion_tokens": False, "similarity_fn_name": "MaxSim"}
_THREE = {"id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"}}
_THREE_HEAD = _head("bert.pooler.dense", "classifier", 3)
_PLAIN = _bert_with({"pooling_mode": "cls"})
_EURO = _language_model(56, "eurobert", mode="mean", rms_norm_eps=1e-5)
_TANH = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh", "version": "5.0"}}

EMBEDDERS: dict[str, Callable[[Path], None]] = {
    **{f"bert-{name}": _bert_with({"pooling_mode": mode}) for name, mode in POOLINGS.items()},
    "bert-two-modes": _bert_with({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}),
    "bert-without-prompt": _without_prompt,
    "bert-dense": _dense,
    "xlm-roberta": _xlm_roberta,
    "modernbert": _modern,
    "qwen3": _qwen,
    "gemma3": _gemma,
    "distilbert": _distilbert,
    "mpnet": _mpnet,
    "electra": _electra,
    "albert": _albert,
    "ernie": _ernie,
    "deberta": _deberta,
    "deberta-apart": _deberta_apart,
    "nomic": _nomic,
    "nomic-published": _nomic_published,
    "gte": _gte,
    "gte-published": _gte_published,
    "gte-scaled": _gte_scaled,
    "qwen2": _language_model(50, "qwen2", biases=("q", "k", "v")),
    "qwen2-window": _language_model(
        51, "qwen2", biases=("q", "k", "v"), use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "mistral": _language_model(52, "mistral", sliding_window=9),
    "llama": _language_model(53, "llama"),
    "llama-biased": _language_model(
        54, "llama", attention_bias=True, mlp_bias=True, biases=("q", "k", "v", "o", "gate", "up", "down")
    ),
    "llama-scaled": _language_model(
        67, "llama", rope_parameters={"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0}
    ),
    "llama-bidirectional": _bidirectional,
    "gemma2": _gemma2,
    "llama-both-ways": _language_model(53, "llama", mode="mean", is_causal=False),
    "qwen3-both-ways": _language_model(55, "qwen3", mode="mean", heads=True, is_causal=False),
    "eurobert": _language_model(56, "eurobert", mode="mean", rms_norm_eps=1e-5),
    "static": _static,
    "model2vec": _model2vec,
    "t5": _t5(57, "t5", gated=False),
    "t5-gated": _t5(58, "t5", gated=True),
    "mt5": _t5(59, "mt5", gated=True),
    "umt5": _t5(63, "umt5", gated=True, each=True),
    "data2vec": _data2vec,
    "roformer": _roformer,
    "jina-v3": _jina,
    "jina-v3-published": _jina_published,
    "jina-v2": _jina_v2(normed=False),
    "jina-v2-code": _jina_v2(normed=True),
    "nomic-moe": _nomic_moe,
    "bge-m3": _m3,
    "deberta-first": _deberta_first,
}
PUBLISHED = {"jina-v2": "jina_bert", "jina-v2-code": "jina_bert", "nomic-moe": "nomic_moe"}
"""Those that no library has, by what `reference_encoders` calls them."""
RERANKERS: dict[str, Callable[[Path], None]] = {
    "bert-reranker": _bert_reranker,
    "bert-reranker-with-prompts": _prompted_reranker,
    "xlm-roberta-reranker": _roberta_reranker,
    "modernbert-reranker": _modern_reranker,
    "distilbert-reranker": _scorer(
        _distilbert, "distilbert.", _head("pre_classifier", "classifier"), "DistilBert"
    ),
    "electra-reranker": _scorer(
        _electra, "electra.", _head("classifier.dense", "classifier.out_proj"), "Electra"
    ),
    "mpnet-reranker": _scorer(_mpnet, "mpnet.", _head("classifier.dense", "classifier.out_proj"), "MPNet"),
    "deberta-first-reranker": _scorer(
        _deberta_first, "deberta.", _head("pooler.dense", "classifier"), "Deberta"
    ),
    "deberta-reranker": _scorer(_deberta, "deberta.", _head("pooler.dense", "classifier"), "DebertaV2"),
    "albert-reranker": _scorer(_albert, "albert.", _head("albert.pooler", "classifier"), "Albert"),
    "ernie-reranker": _scorer(_ernie, "ernie.", _head("ernie.pooler.dense", "classifier"), "Ernie"),
    "gte-reranker": _scorer(_gte, "gte.", _head("gte.pooler.dense", "classifier"), "Gte"),
    "nomic-reranker": _scorer(
        _nomic, "nomic_bert.", _head("nomic_bert.pooler.dense", "classifier"), "NomicBert"
    ),
    "eurobert-reranker": _scorer(_EURO, "model.", _head("dense", "classifier"), "EuroBert"),
    "qwen3-reranker": _scorer(_qwen, "model.", _head("", "score"), "Qwen3"),
    "bert-tanh-reranker": _scorer(_PLAIN, "bert.", _head("bert.pooler.dense", "classifier"), "Bert", **_TANH),
}
JUDGES: dict[str, Callable[[Path], None]] = {
    "judge": _word_judge(80, no=15, message=True, tied=True),
    "judge-one-word": _word_judge(81, no=None, message=True, tied=False),
    "judge-of-pairs": _word_judge(82, no=15, message=False, tied=True),
}
"""Language models that score pairs, with sentence-transformers' files."""
UNREAD_RERANKERS: dict[str, Callable[[Path], None]] = {"jina-v2-reranker": _flash_reranker}
"""Those that no library reads without their own code; each has the weights of ``xlm-roberta-reranker``."""
BARE_JUDGES: dict[str, Callable[[Path], None]] = {
    "Qwen3-Reranker-tiny": _judge(83, "qwen3"),
    "bge-reranker-v2-gemma-tiny": _judge(84, "gemma", norms=0.0, hidden_act="gelu"),
}
"""The same without; what they read is known by their names."""
SPARSE: dict[str, Callable[[Path], None]] = {
    "bert-splade": _masked(_PLAIN, "bert.", _CLS),
    "bert-splade-sum": _masked(_PLAIN, "bert.", _CLS, pooling_strategy="sum"),
    "bert-splade-apart": _masked(
        _PLAIN, "bert.", _CLS, tied="cls.predictions.decoder", activation_function="log1p_relu"
    ),
    "distilbert-splade": _masked(
        _distilbert, "distilbert.", ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
    ),
    "xlm-roberta-splade": _masked(_xlm_roberta, "roberta.", _LM),
    "mpnet-splade": _masked(_mpnet, "mpnet.", _LM),
    "routed-splade": _routed,
    "modernbert-splade": _masked(
        _modern, "model.", ("head.dense", "head.norm", "decoder.bias"), biased=False
    ),
}
LATE: dict[str, Callable[[Path], None]] = {
    "bert-colbert": _late(_PLAIN, _PYLATE),
    "bert-colbert-first": _stanford,
    "bert-colbert-attending": _late(
        _PLAIN, {**_PYLATE, "attend_to_expansion_tokens": True, "skiplist_words": []}
    ),
    "bert-colbert-unfilled": _late(_PLAIN, {**_PYLATE, "do_query_expansion": False}),
    "modernbert-multi-vector": _late(
        _modern,
        {"model_type": "MultiVectorEncoder", "prompts": {"query": "w7 ", "document": ""}},
        native={"skiplist_tasks": ["query", "document"]},
    ),
}
CLASSIFIERS: dict[str, Callable[[Path], None]] = {
    "bert-three-labels": _scorer(_PLAIN, "bert.", _THREE_HEAD, "Bert", **_THREE),
    "distilbert-two-labels": _scorer(
        _distilbert,
        "distilbert.",
        _head("pre_classifier", "classifier", 2),
        "DistilBert",
        id2label={"0": "no", "1": "yes"},
    ),
}


def write(name: str, root: Path) -> Path:
    """The folder ``root/name`` with the repository of that name, written if it is not there."""
    folder = root / name
    if not folder.exists():
        folder.mkdir(parents=True)
        {
            **EMBEDDERS,
            **RERANKERS,
            **UNREAD_RERANKERS,
            **JUDGES,
            **BARE_JUDGES,
            **SPARSE,
            **LATE,
            **CLASSIFIERS,
        }[name](folder)
    return folder


def word_texts() -> list[str]:
    """Texts in the vocabulary of these repositories, of one word to more than fits."""
    random = np.random.default_rng(11)
    lengths = (1, 2, 3, 5, 8, 11, 15, 20, 30, 44, 46, 47, 60, 200)
    return [" ".join(f"w{i}" for i in random.integers(0, WORDS, length)) for length in lengths]


def search_vectors() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Twenty queries and a corpus of 700 vectors of 64 dimensions."""
    random = np.random.default_rng(13)
    corpus = random.standard_normal((700, SIZE)).astype(np.float32)
    near = corpus[::35] + 0.7 * random.standard_normal((20, SIZE))
    return near.astype(np.float32), corpus
