"""Repositories, cross-encoders, architectures and arguments beside sentence-transformers, each a trial.

    python plugins/mlxengine-embed/tests/trials.py [GROUP ...] [--reasons] [--python PYTHON]

``PYTHON`` is one that has sentence-transformers (``make test-parity`` makes one); each side runs in a process
of its own. A trial is right (the same within 1e-4), refused (by an error of ours, with its reason), alone
(sentence-transformers fails, ours does not), rescaled (the same but for its length, by design), wrong, or
untyped (an error that is not ours). `test_trials` lets none be wrong or untyped.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

sys.path.insert(0, str(Path(__file__).parent))
import embed_checkpoints as checkpoints

WORDS = checkpoints.word_texts()
PAIRS = [(WORDS[4], text) for text in WORDS]
ST = "sentence_transformers.models."
TORCH = "torch.nn.modules.activation."
NEAR, BAD = 1e-4, ("wrong", "untyped")


@frozen(kw_only=True)
class Trial:
    """One comparison: both are given a folder and give numbers."""

    group: str
    name: str
    folder: str
    write: Callable[[Path], None]
    theirs: Callable[[Path], Any]
    ours: Callable[[Any, Path], Any]


@frozen(kw_only=True)
class Outcome:
    """What came of a trial, one of the words at the top, and why."""

    group: str
    name: str
    verdict: str
    reason: str = ""


@functools.lru_cache(maxsize=1)
def _sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def _encode(folder: Path, **options: Any) -> Any:
    return _sentence_transformer(folder).encode(WORDS, batch_size=1, **options)


def _embed(engine: Any, folder: Path, **options: Any) -> Any:
    with engine.load_embeddings(folder) as model:
        return model.embed(WORDS, **options).numpy()


def _predict(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu").predict(PAIRS, batch_size=1)


def _score(engine: Any, folder: Path) -> Any:
    with engine.load_embeddings(folder) as model:
        return np.asarray(model.predict(PAIRS))


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _arranged(*stages: tuple[str, dict[str, Any]], own: Any = None, sbert: Any = None) -> Any:
    """A BERT with these modules after its Transformer, and random weights in those that have some."""

    def write(folder: Path) -> None:
        checkpoints.EMBEDDERS["bert-mean"](folder)
        entries = [{"idx": 0, "name": "0", "path": "", "type": f"{ST}Transformer"}]
        for place, (kind, config) in enumerate(stages, 1):
            path = f"{place}_{kind}"
            dotted = kind if "." in kind else ST + kind
            entries.append({"idx": place, "name": str(place), "path": path, "type": dotted})
            _write_json(folder / path / "config.json", config)
            random = np.random.default_rng(place)
            shapes = _shapes(kind, config)
            if shapes:
                from safetensors.numpy import save_file

                values = {
                    name: random.standard_normal(shape).astype(np.float32) / 8
                    for name, shape in shapes.items()
                }
                save_file(values, str(folder / path / "model.safetensors"))
        _write_json(folder / "modules.json", entries)
        if own is not None:
            _write_json(folder / "config_sentence_transformers.json", own)
        if sbert is not None:
            _write_json(folder / "sentence_bert_config.json", sbert)

    return write


def _shapes(kind: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if kind == "Dense":
        inputs, outputs = config["in_features"], config["out_features"]
        bias = {"linear.bias": (outputs,)} if config.get("bias", True) else {}
        extra = config.get("use_residual") and inputs != outputs
        return {"linear.weight": (outputs, inputs), **bias} | (
            {"residual.weight": (outputs, inputs)} if extra else {}
        )
    if kind == "LayerNorm":
        return {"norm.weight": (config["dimension"],), "norm.bias": (config["dimension"],)}
    return {}


MEAN = ("Pooling", {"word_embedding_dimension": 64, "pooling_mode": "mean"})
NORMAL = ("Normalize", {})
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def _dense(inputs: int, outputs: int, activation: str = f"{TORCH}Tanh", **more: Any) -> Any:
    config = {"in_features": inputs, "out_features": outputs, "activation_function": activation}
    return "Dense", {**config, **more}


def _pool(**more: Any) -> Any:
    return "Pooling", {"word_embedding_dimension": 64, **more}


ARRANGEMENTS: dict[str, Any] = {
    **{f"pooling {mode}": _arranged(_pool(pooling_mode=mode)) for mode in FLAGS},
    **{f"flag {mode}": _arranged(_pool(**{flag: True})) for mode, flag in FLAGS.items()},
    "two modes": _arranged(_pool(pooling_mode=["cls", "max"])),
    "three flags": _arranged(_pool(**{FLAGS[mode]: True for mode in ("mean", "cls", "lasttoken")})),
    "all flags": _arranged(_pool(**dict.fromkeys(FLAGS.values(), True))),
    "no flag": _arranged(_pool(**dict.fromkeys(FLAGS.values(), False))),
    "unknown mode": _arranged(_pool(pooling_mode="median")),
    "without prompt": _arranged(_pool(pooling_mode="mean", include_prompt=False)),
    "normalize": _arranged(MEAN, NORMAL),
    "normalize twice": _arranged(MEAN, NORMAL, NORMAL),
    "no pooling": _arranged(),
    "pooling twice": _arranged(MEAN, MEAN),
    **{
        f"dense {name}": _arranged(MEAN, _dense(64, 40, f"{TORCH}{name}"), NORMAL)
        for name in ("Tanh", "GELU", "ReLU", "Sigmoid", "SiLU", "LeakyReLU", "ELU", "Hardswish", "Mish")
    },
    "dense identity": _arranged(MEAN, _dense(64, 40, "torch.nn.modules.linear.Identity")),
    "dense without bias": _arranged(MEAN, _dense(64, 40, bias=False)),
    "dense twice": _arranged(MEAN, _dense(64, 40), _dense(40, 24, f"{TORCH}GELU"), NORMAL),
    "dense residual": _arranged(MEAN, _dense(64, 64, use_residual=True)),
    "dense residual of another size": _arranged(MEAN, _dense(64, 40, use_residual=True)),
    "dense of another width": _arranged(MEAN, _dense(48, 40)),
    "dense before pooling": _arranged(
        _dense(64, 64, module_input_name="token_embeddings", module_output_name="token_embeddings"), MEAN
    ),
    "normalize, dense": _arranged(MEAN, NORMAL, _dense(64, 40)),
    "layer norm": _arranged(MEAN, ("LayerNorm", {"dimension": 64})),
    "dropout": _arranged(MEAN, ("Dropout", {"dropout": 0.5})),
    "dropout, normalize": _arranged(MEAN, ("Dropout", {"dropout": 0.1}), NORMAL),
    "layers weighed": _arranged(
        ("WeightedLayerPooling", {"word_embedding_dimension": 64, "num_hidden_layers": 3, "layer_start": 2}),
        MEAN,
    ),
    "cnn": _arranged(
        ("CNN", {"in_word_embedding_dimension": 64, "out_channels": 8, "kernel_sizes": [1, 3]}), MEAN
    ),
    "lstm": _arranged(
        ("LSTM", {"word_embedding_dimension": 64, "hidden_dim": 8, "num_layers": 1, "dropout": 0}), MEAN
    ),
    "router": _arranged(("Router", {}), MEAN),
    "a module of its own": _arranged(("custom_st.Own", {}), MEAN),
    "longest 12": _arranged(MEAN, sbert={"max_seq_length": 12, "do_lower_case": False}),
    "longest none": _arranged(MEAN, sbert={"max_seq_length": None, "do_lower_case": False}),
    "lower case": _arranged(MEAN, sbert={"max_seq_length": 30, "do_lower_case": True}),
    "a model argument": _arranged(MEAN, sbert={"max_seq_length": 30, "model_args": {"is_decoder": True}}),
    "default prompt": _arranged(MEAN, own={"prompts": {"query": "w1 w2 "}, "default_prompt_name": "query"}),
    "prompts": _arranged(MEAN, own={"prompts": {"query": "w1 w2 ", "document": ""}}),
    "truncated": _arranged(MEAN, own={"truncate_dim": 16}),
    **{
        f"similarity {name}": _arranged(MEAN, own={"similarity_fn_name": name})
        for name in ("cosine", "dot", "euclidean", "manhattan", "jaccard")
    },
}


def _of_architecture(kind: str, mode: str = "mean", **settings: Any) -> Callable[[Path], None]:
    """What transformers saves of an architecture with random weights, biases and norms among them."""

    def write(folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModel

        sizes: dict[str, Any] = {"vocab_size": len(checkpoints.VOCABULARY), "hidden_size": 64}
        sizes |= {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "pad_token_id": 0,
        }
        sizes |= {"max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
        default = AutoConfig.for_model(kind)
        known = {key: value for key, value in sizes.items() if hasattr(default, key)} | settings
        config = AutoConfig.for_model(kind, **{k: v for k, v in known.items() if v is not None})
        torch.manual_seed(1)
        model = AutoModel.from_config(config)
        with torch.no_grad():
            for value in filter(lambda value: value.requires_grad, model.parameters()):
                spread = 1.2 / value.shape[-1] ** 0.5 if value.dim() > 1 else 0.2
                value.copy_(torch.randn_like(value) * spread + (0 if value.dim() > 1 else value))
        model.save_pretrained(folder)
        checkpoints.write_tokenizer(folder, "bert")
        checkpoints.write_modules(folder, {"pooling_mode": mode}, longest=40)

    return write


_GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
_T5 = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
ARCHITECTURES: dict[str, Any] = {
    name: _of_architecture(name, **settings)
    for name, settings in {
        "albert": {"embedding_size": 32},
        "bert": {},
        "big_bird": {"attention_type": "original_full"},
        "camembert": {},
        "convbert": {},
        "data2vec-text": {},
        "deberta": {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
        },
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c"], "position_buckets": 16},
        "distilbert": {"hidden_dim": 96},
        "electra": {"embedding_size": 32},
        "ernie": {},
        "esm": {"position_embedding_type": "rotary"},
        "eurobert": _GROUPED,
        "exaone4": _GROUPED,
        "falcon": {},
        "gemma": _GROUPED,
        "gemma2": {**_GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16},
        "gemma3_text": {**_GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16},
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
        "gpt_neox": {},
        "granite": {"num_key_value_heads": 2},
        "gte": {},
        "jina_embeddings_v3": {},
        "lfm2": {"num_key_value_heads": 2, "full_attn_idxs": [1], "block_ff_dim": 96},
        "llama": _GROUPED,
        "longformer": {"attention_window": 8},
        "luke": {"entity_vocab_size": 10, "entity_emb_size": 64},
        "megatron-bert": {},
        "mistral": _GROUPED,
        "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 16},
        "mpnet": {},
        "mt5": _T5,
        "nomic_bert": {},
        "nystromformer": {"num_landmarks": 16, "segment_means_seq_len": 16},
        "olmo2": _GROUPED,
        "phi3": {**_GROUPED, "sliding_window": None},
        "qwen2": _GROUPED,
        "qwen3": _GROUPED,
        "rembert": {"input_embedding_size": 32},
        "roberta": {},
        "roberta-prelayernorm": {},
        "roformer": {"embedding_size": 32},
        "smollm3": _GROUPED,
        "squeezebert": {"embedding_size": 64},
        "t5": _T5,
        "umt5": _T5,
        "xlm-roberta": {},
        "xlm-roberta-xl": {},
        "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96, "max_position_embeddings": None},
        "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    }.items()
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompt": {"prompt": "w1 w2 w3 "},
    "empty prompt": {"prompt": ""},
    "prompt name": {"prompt_name": "query"},
    "unknown prompt": {"prompt_name": "nobody"},
    "normalized": {"normalize_embeddings": True},
    "8 dimensions": {"truncate_dim": 8},
    "8 dimensions, normalized": {"truncate_dim": 8, "normalize_embeddings": True},
    "more dimensions than there are": {"truncate_dim": 4096},
    "no dimensions": {"truncate_dim": 0},
    "minus one": {"truncate_dim": -1},
    "int8": {"precision": "int8"},
    "uint8": {"precision": "uint8"},
    "binary": {"precision": "binary"},
    "ubinary": {"precision": "ubinary"},
    "unknown precision": {"precision": "int4"},
    "prompt, binary": {"prompt": "w1 ", "precision": "ubinary"},
}
_OF_OURS = {"normalize_embeddings": "normalize"}
_ARGUED: dict[str, Any] = {
    name: checkpoints.EMBEDDERS[name]
    for name in ("bert-cls", "bert-without-prompt", "xlm-roberta", "modernbert", "qwen3")
}
_ARGUED["with prompts"] = ARRANGEMENTS["prompts"]


def _argument(options: dict[str, Any]) -> tuple[Callable[[Path], Any], Callable[[Any, Path], Any]]:
    mine = {_OF_OURS.get(name, name): value for name, value in options.items()}
    return lambda folder: _encode(folder, **options), lambda engine, folder: _embed(engine, folder, **mine)


def trials() -> Iterator[Trial]:
    """All of them."""
    for name, write in ARRANGEMENTS.items():
        yield Trial(group="arrangements", name=name, folder=name, write=write, theirs=_encode, ours=_embed)
    for name, write in {**checkpoints.RERANKERS, **checkpoints.CLASSIFIERS, **checkpoints.JUDGES}.items():
        yield Trial(group="cross-encoders", name=name, folder=name, write=write, theirs=_predict, ours=_score)
    for name, write in ARCHITECTURES.items():
        yield Trial(group="architectures", name=name, folder=name, write=write, theirs=_encode, ours=_embed)
    for model, write in _ARGUED.items():
        for name, options in _OPTIONS.items():
            theirs, ours = _argument(options)
            yield Trial(
                group="arguments",
                name=f"{model}: {name}",
                folder=model,
                write=write,
                theirs=theirs,
                ours=ours,
            )


def chosen(groups: Sequence[str]) -> list[Trial]:
    """The trials of these groups, all without any."""
    return [trial for trial in trials() if not groups or trial.group in groups]


def refer(groups: Sequence[str], root: Path) -> None:
    """Write the repositories of trials, and what sentence-transformers gives for each."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for place, trial in enumerate(chosen(groups)):
        folder = root / trial.group / trial.folder
        if not folder.exists():
            folder.mkdir(parents=True)
            trial.write(folder)
        try:
            np.save(root / f"{place}.npy", np.asarray(trial.theirs(folder)))
        except Exception as error:
            (root / f"{place}.txt").write_text(f"{type(error).__name__}: {error}")


def run(groups: Sequence[str], python: str) -> Iterator[Outcome]:
    """The outcomes of the trials of these groups, of all without any, one after the other.

    Args:
        groups: their names.
        python: one that has sentence-transformers.
    """
    from mlxengine import InferenceEngine

    with tempfile.TemporaryDirectory() as scratch, InferenceEngine() as engine:
        root = Path(scratch)
        command = [python, __file__, *groups, "--reference", scratch]
        subprocess.run(command, check=True, capture_output=True)
        for place, trial in enumerate(chosen(groups)):
            failed = root / f"{place}.txt"
            expected = failed.read_text() if failed.exists() else np.load(root / f"{place}.npy")
            yield _outcome(trial, engine, root / trial.group / trial.folder, expected)


def _outcome(trial: Trial, engine: Any, folder: Path, expected: Any) -> Outcome:
    """``expected`` is a text where theirs failed."""
    from mlxengine.errors import MLXEngineError

    def found(verdict: str, reason: object = "") -> Outcome:
        return Outcome(group=trial.group, name=trial.name, verdict=verdict, reason=str(reason)[:300])

    failed = isinstance(expected, str)
    try:
        given = np.asarray(trial.ours(engine, folder))
    except MLXEngineError as error:
        return found("refused", f"{error}" + (" [theirs fails too]" if failed else ""))
    except Exception as error:
        return found("untyped", repr(error))
    if failed:
        return found("alone", f"theirs: {expected}")
    if given.shape != expected.shape:
        return found("wrong", f"{given.shape} instead of {expected.shape}")
    difference = np.abs(given.astype(np.float64) - expected.astype(np.float64))
    # A value on the border of two steps may fall on either side.
    near = (difference > 0).mean() < 0.01 if given.dtype.kind in "iu" else difference.max() < NEAR
    if not near and given.ndim == 2:
        scaled = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        if np.abs(given - scaled).max() < NEAR:
            return found("rescaled", "what is truncated has unit length again, as the page says")
    return found("right" if near else "wrong", f"{difference.max():.2g}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--python", default=sys.executable, help="one that has sentence-transformers")
    parser.add_argument("--reasons", action="store_true", help="print each trial that is not right")
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference is not None:
        refer(options.groups, options.reference)
        return 0
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for item in run(options.groups, options.python):
        counts[item.group][item.verdict] += 1
        if item.verdict in BAD or (options.reasons and item.verdict != "right"):
            print(f"{item.verdict:<8} {item.group}: {item.name}: {item.reason}", flush=True)
    for group, found in counts.items():
        print(f"{group}: {found.total()} trials, " + ", ".join(f"{n} {what}" for what, n in found.items()))
    return int(any(found[what] for found in counts.values() for what in BAD))


if __name__ == "__main__":
    sys.exit(main())
