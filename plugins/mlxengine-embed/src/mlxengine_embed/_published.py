"""Published configurations that name another architecture than the one their repository's code computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from mlxengine import ModelCard

SEARCH_TASKS = {"query": "retrieval.query", "document": "retrieval.passage"}
"""What jina-embeddings-v3 calls the two sides of a search, among its prompts and its tasks."""


def named(card: ModelCard) -> ModelCard:
    """The card with a ``model_type`` where a configuration leaves it to the repository's own class."""
    classes = card.config.get("auto_map")
    own = str(classes.get("AutoConfig")) if isinstance(classes, Mapping) else ""
    if card.config.get("model_type") or not own.endswith(".XLMRobertaFlashConfig"):
        return card
    config = {**card.config, "model_type": "xlm-roberta"}
    return evolve(card, documents={**card.documents, "config.json": config})


def as_computed(card: ModelCard, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ``config.json`` with the ``model_type`` and the settings of what is computed.

    Args:
        card: the model; its tensors' names tell forms apart.
        config: the file.
    """
    kind, places = config.get("model_type"), config.get("position_embedding_type")
    if kind == "bert" and places == "alibi":
        # Both of Jina's implementations call themselves so; that of its model for code norms its queries.
        normed = any(".layer_norm_q." in tensor.name for tensor in card.tensors)
        act = "relu" if config.get("feed_forward_type") == "reglu" else "gelu"
        return {**config, "model_type": "jina_bert_normed" if normed else "jina_bert", "hidden_act": act}
    if kind == "xlm-roberta" and places == "rotary":
        theta = config.get("rotary_emb_base", 10_000.0)
        return {**config, "model_type": "jina_embeddings_v3", "rope_theta": theta}
    if kind == "xlm-roberta" and any(".mixer.Wqkv." in tensor.name for tensor in card.tensors):
        return {**config, "model_type": "xlm_roberta_flash"}
    if kind == "nomic_bert" and config.get("num_experts"):
        return {**config, "model_type": "nomic_bert_moe"}
    return config


__all__ = ["SEARCH_TASKS", "as_computed", "named"]
