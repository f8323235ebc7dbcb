"""The tokenizer that a GGUF file carries, as the files that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..errors import CorruptFileError, UnsupportedArchitectureError

_CONTROL, _USER_DEFINED = 3, 4

# Splits before byte-level BPE, as the two models' own tokenizer.json files have them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _split(pattern: str) -> Any:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])


PRE_TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "gpt-2": _byte_level,
    "smollm": _single_digits,
    "llama-bpe": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_QWEN2),
}


def tokenizer_files(metadata: Mapping[str, Any], name: str) -> dict[str, str]:
    """Texts of ``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json``.

    Raises:
        UnsupportedArchitectureError: the tokenizer is not byte-level BPE with a known pre-tokenizer.
        CorruptFileError: the vocabulary or the merges are missing.
    """

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, pre = value("model"), value("pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise UnsupportedArchitectureError(
            f"{name} has the tokenizer {kind!r} with the pre-tokenizer {pre!r}; byte-level BPE with "
            f"{', '.join(PRE_TOKENIZERS)} can be read.",
            hint="Use the model's MLX conversion.",
        )
    tokens, merges = value("tokens"), value("merges")
    if not tokens or merges is None:
        raise CorruptFileError(f"{name} has no vocabulary or no merges.", hint="Fetch it again.")
    types = value("token_type") or [1] * len(tokens)
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=pre == "llama-bpe",
        )
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    ids = {
        role: value(f"{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    if value("add_bos_token", False) and ids["bos"] is not None:
        start = tokens[ids["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, ids["bos"])]
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.get(f"{metadata.get('general.architecture')}.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
        **{f"{role}_token": tokens[index] for role, index in ids.items() if index is not None},
    }
    # a chat model may end its turn with another token than its documents
    ends = sorted({index for index in (ids["eos"], value("eot_token_id")) if index is not None})
    generation = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else ids["eos"],
        "pad_token_id": ids["pad"],
    }
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": _json(settings),
        "generation_config.json": _json(generation),
    }


def _json(values: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in values.items() if value is not None}, indent=1)
