"""Whether this plugin serves a model, told from its card alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from mlxengine import Claim, Fit, MemoryEstimate, ModelCard, Source, VectorWorkload
from mlxengine.errors import (
    IncompatibleWeightsError,
    MLXEngineError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.estimate import architectures, loaded_weights, number

from ._architectures import ENCODERS, HEADS, LIBRARIES, MASKED_HEADS, OTHERWISE
from ._families import family_of
from ._late import METADATA, is_late
from ._published import as_computed, named
from ._recipe import is_sentence_model, judges, makes_terms, read_recipe, read_scoring
from ._settings import encoder_problem
from ._sight import claim_sight

FILES = ("*.json", METADATA, "*.safetensors", "*.txt", "*.model", "*.jinja")
CPU_TOKENS, GPU_TOKENS = 256, 16384  # padded tokens in one step


def claim(card: ModelCard) -> Claim | None:
    """The plugin's offer for a model, or ``None`` for what makes no vectors and no scores."""
    if card.source is Source.GGUF or "model_index.json" in card.documents:
        return None
    if (seen := claim_sight(card, FILES)) is not None:
        return evolve(seen, problem=seen.problem or _unreadable(card))
    card = named(card)
    wanted = card.configuration.kind == "embed" or card.configuration.plugin == "embed"
    sentence = is_sentence_model(card)
    judged = _judges(card)
    scores = _is_scorer(card) or judged
    bare = card.architecture in ENCODERS and not _is_classifier(card)
    known = card.architecture in OTHERWISE and family_of(card) is not None
    if not (sentence or scores or bare or known or (wanted and card.config)):
        return None
    strong = (
        sentence
        or is_late(card)
        or judged
        or _ranks(card, scores)
        or known
        or wanted
        or family_of(card) is not None
    )
    problem = _problem(card, scores)
    what = (
        "a language model that scores pairs"
        if judged
        else "a cross-encoder"
        if scores
        else "sentence-transformers files"
        if sentence
        else "an encoder"
    )
    library = LIBRARIES.get(card.architecture or "")
    return Claim(
        kind="embed",
        fit=Fit.NATIVE if strong else Fit.PARTIAL,
        files=FILES,
        capabilities={"reranking"} if scores else {"embeddings"},
        estimate=lambda workload: _estimate(card, workload),
        problem=problem,
        reason=f"{what}, {card.architecture} by {library}" if library else what,
    )


def _is_scorer(card: ModelCard) -> bool:
    names = architectures(card.config)
    return card.architecture in HEADS and any(name.endswith("ForSequenceClassification") for name in names)


def _judges(card: ModelCard) -> bool:
    try:
        return judges(card)
    except MLXEngineError:
        return True  # what is wrong with it comes out again where it is read


def _ranks(card: ModelCard, scores: bool) -> bool:
    """Whether a classifier was trained on pairs of texts, as far as its configuration tells."""
    labels = card.config.get("id2label")
    trained = "sentence_transformers" in card.config or "sbert_ce_default_activation_function" in card.config
    return scores and (trained or not isinstance(labels, Mapping) or len(labels) == 1)


def _is_classifier(card: ModelCard) -> bool:
    others = ("Classification", "QuestionAnswering", "MultipleChoice", "ForCausalLM")
    return any(name.endswith(others) for name in architectures(card.config))


def _problem(card: ModelCard, scores: bool) -> MLXEngineError | None:
    try:
        recipe = read_scoring(card) if scores else read_recipe(card)
    except MLXEngineError as error:
        return error
    if recipe.static:
        return _unreadable(card)
    folder = recipe.folder
    config = card.documents.get(f"{folder}/config.json") if folder else card.config
    config = as_computed(card, config) if isinstance(config, Mapping) else {}
    kind = config.get("model_type")
    if config and (problem := config_problem(card.id, config, card.tensors)) is not None:
        return problem
    if kind not in LIBRARIES:
        if config.get("auto_map"):
            return RemoteCodeRefusedError(
                f"{card.id} wants to run its own code for the architecture {kind!r}.",
                hint="The repository's code is never run for embeddings; choose a model without it.",
            )
        return UnsupportedArchitectureError(
            f"{card.id} has the encoder architecture {kind!r}, which is not supported.",
            hint=f"Supported are {', '.join(LIBRARIES)}.",
        )
    if recipe.splade is not None and kind not in MASKED_HEADS:
        return UnsupportedArchitectureError(
            f"{card.id} makes sparse vectors with the architecture {kind!r}, which is not supported.",
            hint=f"Supported are {', '.join(MASKED_HEADS)}.",
        )
    where = f"{folder}/config.json" if folder else "config.json"
    judged = recipe.judge is not None
    return encoder_problem(card, config, where, judged=judged) or _unreadable(card)


def _unreadable(card: ModelCard) -> MLXEngineError | None:
    if card.files and not card.names(".safetensors"):
        return IncompatibleWeightsError(
            f"{card.id} has no safetensors weights.",
            hint="Pickled weights are never loaded: choose a revision with safetensors, or convert "
            "them: mlxengine convert --from-bin.",
        )
    return None


def _estimate(card: ModelCard, workload: VectorWorkload) -> MemoryEstimate:
    """Weights as they are kept, and the working space of one step: hidden states and attention scores."""
    config: Mapping[str, Any] = card.config
    hidden = _size(config, "hidden_size", "dim", "d_model", "n_embd") or 768
    inner = _size(config, "intermediate_size", "hidden_dim", "d_ff", "n_inner") or 4 * hidden
    heads = _size(config, "num_attention_heads", "n_heads", "num_heads", "n_head") or 12
    length = workload.context_length or 512
    tokens = min(length * workload.batch, CPU_TOKENS if workload.backend == "cpu" else GPU_TOKENS)
    logits = 0
    if makes_terms(card):
        # A piece of the logits before and after what is done to them, and the sum so far.
        logits = 3 * min(tokens * (_size(config, "vocab_size") or 30_522), 1 << 25)
    # Numbers that live at once for each token, found by measuring: they follow the peak within 5 %. Distances
    # that weigh on attention are a whole table of it.
    whole = config.get("position_embedding_type") == "alibi"
    numbers = 7 * hidden + 4 * inner + heads * (length if whole else min(length, 512))
    return MemoryEstimate(
        weights=loaded_weights(card, workload), workspace=4 * (max(tokens, length) * numbers + logits)
    )


__all__ = ["FILES", "claim"]


def _size(config: Mapping[str, Any], *names: str) -> int:
    """A size by the first of the names that architectures have for it."""
    return next((found for name in names if (found := number(config, name))), 0)
