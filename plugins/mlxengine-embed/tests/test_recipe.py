"""What a repository's JSON files say, read from a card alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlxengine import Fit, ModelCard, ModelConfiguration, ModelRef, Source, TensorInfo
from mlxengine.errors import (
    IncompatibleWeightsError,
    InvalidParameterError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine_embed import EmbedConfiguration
from mlxengine_embed._claim import claim
from mlxengine_embed._recipe import Dense, Normalize, read_recipe
from mlxengine_embed.models import MODELS

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.pooling."
BERT = {"model_type": "bert", "hidden_size": 8, "architectures": ["BertModel"]}


def card(
    name: str = "model", config: Any = BERT, tensors: tuple[str, ...] = (), **documents: Any
) -> ModelCard:
    files = {path.replace("__", "/").replace("_json", ".json"): value for path, value in documents.items()}
    return ModelCard(
        ref=ModelRef(path=Path("/") / name),
        configuration=ModelConfiguration(id=f"/{name}"),
        source=Source.FOLDER,
        commit="0" * 40,
        path=Path("/") / name,
        documents={"config.json": config, **files},
        tensors=tuple(TensorInfo(name=t, dtype="F32", shape=(1,), nbytes=4, file="m") for t in tensors),
    )


def modules(*names: str, prefix: str = OLD) -> list[dict[str, Any]]:
    paths = {name: f"{i}_{name}" if i else "" for i, name in enumerate(names)}
    return [{"idx": i, "type": prefix + name, "path": paths[name]} for i, name in enumerate(names)]


@pytest.mark.parametrize("prefix", [OLD, NEW])
@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["cls", "max"]}, ("cls", "max")),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}, ("max", "lasttoken")),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
    ],
)
def test_pooling_is_read_in_its_old_and_its_new_form(prefix: str, config: Any, pooling: Any) -> None:
    found = read_recipe(
        card(
            modules_json=modules("Transformer", "Pooling", prefix=prefix),
            **{"1_Pooling__config_json": config},
        )
    )
    assert found.pooling == pooling
    assert found.source == "modules.json"


def test_stages_prompts_and_limits_are_read() -> None:
    dense = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.modules.linear.Identity"}
    settings = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 2}
    found = read_recipe(
        card(
            modules_json=modules("Transformer", "Pooling", "Dense", "Dropout", "Normalize"),
            **{"1_Pooling__config_json": {"pooling_mode": "mean", "include_prompt": False}},
            **{"2_Dense__config_json": dense, "config_sentence_transformers_json": settings},
            sentence_roberta_config_json={"max_seq_length": 77, "do_lower_case": True},
        )
    )
    assert found.stages == (Dense(folder="2_Dense", inputs=8, outputs=4, activation="identity"), Normalize())
    assert (found.max_length, found.lower_case, found.include_prompt) == (77, True, False)
    assert (found.default_prompt, found.truncate_dim, found.dimension(8)) == ("query", 2, 4)


@pytest.mark.parametrize(
    ("documents", "match"),
    [
        ({"modules_json": modules("Transformer", "Pooling", "WordWeights")}, "stage 'WordWeights'"),
        ({"modules_json": modules("Transformer")}, "no Pooling"),
        ({}, "says nothing about pooling"),
    ],
)
def test_what_cannot_be_read_is_a_typed_error(documents: Any, match: str) -> None:
    pooling = {"1_Pooling__config_json": {"pooling_mode": "cls"}} if documents else {}
    with pytest.raises(UnsupportedArchitectureError, match=match):
        read_recipe(card(**documents, **pooling))


def test_an_unknown_pooling_or_activation_is_a_typed_error() -> None:
    listed = modules("Transformer", "Pooling")
    with pytest.raises(UnsupportedArchitectureError, match="attention_pool"):
        read_recipe(
            card(modules_json=listed, **{"1_Pooling__config_json": {"pooling_mode": "attention_pool"}})
        )
    dense = {"in_features": 8, "out_features": 4, "activation_function": "mine.Special"}
    documents = {"1_Pooling__config_json": {"pooling_mode": "cls"}, "2_Dense__config_json": dense}
    with pytest.raises(UnsupportedArchitectureError, match=r"mine\.Special"):
        read_recipe(card(modules_json=modules("Transformer", "Pooling", "Dense"), **documents))
    with pytest.raises(InvalidParameterError, match="not a pooling mode"):
        bare = card()
        object.__setattr__(bare, "configuration", EmbedConfiguration(id="/model", pooling="first"))
        read_recipe(bare)


@pytest.mark.parametrize(
    ("name", "pooling", "query"),
    [
        ("bge-small-en-v1.5-mlx", "cls", "Represent this sentence for searching relevant passages: "),
        ("multilingual-e5-small", "mean", "query: "),
        (
            "multilingual-e5-large-instruct-mlx",
            "mean",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
        ),
        ("gte-base", "mean", None),
        ("snowflake-arctic-embed-l-v2.0", "cls", "query: "),
        ("mxbai-embed-large-v1", "cls", "Represent this sentence for searching relevant passages: "),
    ],
)
def test_a_bare_encoder_of_a_known_family_has_its_rules(name: str, pooling: str, query: str | None) -> None:
    found = read_recipe(card(name))
    assert (found.pooling, found.normalizes) == ((pooling,), True)
    assert found.prompts.get("query") == query


def test_modules_without_pooling_take_the_one_that_the_caller_names() -> None:
    listed = card(modules_json=modules("Transformer", "Normalize"))
    with pytest.raises(UnsupportedArchitectureError, match="pooling="):
        read_recipe(listed)
    object.__setattr__(listed, "configuration", EmbedConfiguration(id="/model", pooling="cls"))
    assert read_recipe(listed).pooling == ("cls",)


def test_a_converted_embeddinggemma_needs_its_projections() -> None:
    config = {"model_type": "gemma3_text", "hidden_size": 8, "architectures": ["Gemma3TextModel"]}
    with pytest.raises(IncompatibleWeightsError, match="two projections"):
        read_recipe(card("embeddinggemma-300m-4bit", config))
    found = read_recipe(card("embeddinggemma-300m-4bit", config, ("dense.0.weight", "dense.1.weight")))
    assert [type(stage) for stage in found.stages] == [Dense, Dense, Normalize]


def test_a_claim_tells_encoders_from_language_models_and_classifiers() -> None:
    listed = {
        "modules_json": modules("Transformer", "Pooling"),
        "1_Pooling__config_json": {"pooling_mode": "cls"},
    }
    strong = claim(card(**listed))
    assert strong is not None
    assert (strong.fit, strong.kind, strong.problem) == (Fit.NATIVE, "embed", None)
    bare = claim(card())
    assert bare is not None
    assert bare.fit is Fit.PARTIAL
    assert isinstance(bare.problem, UnsupportedArchitectureError)
    assert claim(card(config={"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})) is None
    emotions = {**BERT, "architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    several = claim(card(config=emotions))
    ranks = claim(card(config={**emotions, "id2label": {"0": "relevant"}}))
    assert several is not None
    assert ranks is not None
    assert (several.fit, ranks.fit) == (Fit.PARTIAL, Fit.NATIVE)
    assert several.capabilities == ranks.capabilities == {"reranking"}


def test_an_architecture_that_needs_its_own_code_is_refused_before_any_download() -> None:
    config = {"model_type": "nomic_bert", "auto_map": {"AutoModel": "modeling.NomicBert"}}
    listed = {
        "modules_json": modules("Transformer", "Pooling"),
        "1_Pooling__config_json": {"pooling_mode": "cls"},
    }
    found = claim(card(config=config, **listed))
    assert found is not None
    assert isinstance(found.problem, RemoteCodeRefusedError)


def test_registry_entries_are_of_families_that_are_known_and_have_their_facts() -> None:
    ids = [entry.id for entry in MODELS]
    assert len(set(ids)) == len(ids) > 25
    for entry in MODELS:
        assert entry.kind == "embed"
        assert entry.max_length
        assert entry.parameters
        other = entry.family in ("splade", "neural-sparse", "colbert")
        assert entry.dimension or other or "rerank" in entry.id.lower() or "cross" in entry.id
