"""Rerankers that are language models: they read a pair in a template, and score it by their next word.

A repository says so with sentence-transformers' ``LogitScore`` after its ``Transformer``; two families whose
repositories may hold the language model alone are known by their names. Pure: nothing here loads anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen
from mlxengine import ModelCard
from mlxengine.errors import IncompatibleWeightsError, UnsupportedArchitectureError

from ._settings import check_stage, transformer_settings

CUT = "\x1e"
"""Where the text that a template writes is cut before it is encoded, so that no token spans the place."""


@frozen(kw_only=True)
class Judge:
    """What a language model reads of a pair, and which of its logits make the score.

    Args:
        yes: the token, an id or a word, whose logit at the last place is the score.
        no: the token whose logit is subtracted from it, if there is one.
        template: a chat template with messages of the roles ``query`` and ``document``, before them one of
            the role ``system`` where a request has a prompt; ``None`` for the tokenizer's own.
        chat: whether the template is used, or the pair encoded as a cross-encoder's; ``None`` uses one if
            there is one.
        listed: whether contents are lists of parts rather than texts.
        variables: what else the template is given.
        activation: what makes the score of the logits, unless the repository says it.
        max_length: longest input in tokens, unless the repository says it.
    """

    yes: int | str
    no: int | str | None = None
    template: str | None = None
    chat: bool | None = None
    listed: bool = False
    variables: Mapping[str, Any] = field(factory=dict)
    activation: str | None = None
    max_length: int | None = None


_FIRST = (
    "{%- set {0} = messages | selectattr('role', 'equalto', '{0}') | map(attribute='content') | first {1}-%}"
)


def _reading(text: str, instruction: str) -> str:
    """A template that writes a text with the three contents in it; without an instruction this one."""
    found = _FIRST.replace("{0}", "system").replace("{1}", f"| default({instruction!r}) ")
    found += "".join(_FIRST.replace("{0}", role).replace("{1}", "") for role in ("query", "document"))
    return found + text


# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B: the text, "yes" less "no", a sigmoid, 8,192 tokens.
_QWEN3 = Judge(
    yes="yes",
    no="no",
    template=_reading(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: {{ system }}\n<Query>: {{ query }}\n<Document>: {{ document }}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n{{ '' }}",
        "Given a web search query, retrieve relevant passages that answer the query",
    ),
    activation="sigmoid",
    max_length=8192,
)
# https://huggingface.co/BAAI/bge-reranker-v2-gemma: its parts are encoded one by one; the logit of "Yes", as
# it is; 1,024 tokens.
_GEMMA = Judge(
    yes="Yes",
    template=_reading(
        "{{ bos_token }}|A: {{ query }}|\n|B: {{ document }}|\n|{{ system }}".replace("|", CUT),
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
    ),
    activation="identity",
    max_length=1024,
)
FAMILIES: Mapping[str, Judge] = {r"qwen3-reranker": _QWEN3, r"bge-reranker-v2-gemma": _GEMMA}
"""The judge of each family, by a pattern in the lower-cased name."""
_NOT_VARIABLES = ("restore_suffix", "truncation", "max_length", "padding", "return_tensors", "tokenize")


def find_judge(card: ModelCard, modules: Sequence[Mapping[str, Any]]) -> Judge | None:
    """The judge of a repository, ``None`` for one that is no such reranker.

    Args:
        card: the model.
        modules: what its ``modules.json`` lists.

    Raises:
        UnsupportedArchitectureError: it asks for what is not known.
        IncompatibleWeightsError: it names no token.
    """
    if not modules:
        names = [str(name) for name in card.config.get("architectures") or ()]
        writes = any(name.endswith("ForCausalLM") for name in names)
        name = f"{card.configuration.family or ''} {card.id}".lower()
        found = (judge for pattern, judge in FAMILIES.items() if re.search(pattern, name))
        return next(found, None) if writes else None
    last = modules[-1]
    if str(last.get("type", "")).rpartition(".")[2] != "LogitScore":
        return None
    where = f"{str(last.get('path', '')).strip('/')}/config.json"
    config = card.documents.get(where)
    if not isinstance(config, Mapping) or not isinstance(config.get("true_token_id"), int):
        raise IncompatibleWeightsError(
            f"{where} of {card.id} names no true_token_id.", hint="The repository is incomplete."
        )
    check_stage(card, "LogitScore", config, where)
    _, settings = transformer_settings(card, "")
    modalities, processing = settings.get("modality_config"), settings.get("processing_kwargs")
    message = modalities.get("message") if isinstance(modalities, Mapping) else None
    variables = processing.get("chat_template") if isinstance(processing, Mapping) else None
    variables = variables if isinstance(variables, Mapping) else {}
    if refused := [name for name in variables if name in _NOT_VARIABLES]:
        raise UnsupportedArchitectureError(
            f"{card.id} renders its template with {refused[0]}={variables[refused[0]]!r}, "
            "which is not supported."
        )
    return Judge(
        yes=config["true_token_id"],
        no=config.get("false_token_id"),
        chat=None if not isinstance(modalities, Mapping) else message is not None,
        listed=isinstance(message, Mapping) and message.get("format") == "structured",
        variables=variables,
    )


__all__ = ["CUT", "Judge", "find_judge"]
