"""Adapters of both kinds of text models: what they compute, per request, and no trace when they are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import (
    GenerateParams,
    InferenceEngine,
    LoadAdapterRequest,
    ScoreRequest,
    TokenUsage,
    UnloadAdapterRequest,
)
from mlxengine.errors import (
    CorruptFileError,
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    LoadError,
    ModelNotFoundError,
)
from safetensors.numpy import load_file, save_file

from .llama import Adapter, Llama
from .subjects import KINDS, Subject, continued, drawn, logprobs_of, raw, said

from sameness import check_same, tolerance  # isort: skip (found where `subjects` says)

pytestmark = [pytest.mark.feature("llm.lora"), pytest.mark.feature("vlm.lora")]
TEXT = "a prompt to adapt, and then some more of it"


def load(subject: Subject, model: Any, adapter: Adapter, folder: Path, name: str, **how: Any) -> None:
    """Load an adapter in the library's own format."""
    source = adapter.write(folder / name, subject.kind.paths[0])
    subject.run(model, LoadAdapterRequest(name=name, source=str(source), **how))


def score(subject: Subject, model: Any, adapter: str | None = None) -> np.ndarray[Any, Any]:
    return logprobs_of(subject.scores(model, text=TEXT, adapter=adapter)[0])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_row_is_what_numpy_computes_whatever_the_format_and_the_base_comes_back_bit_for_bit(
    subject: Subject, llama: Llama, tmp_path: Path, dora: bool
) -> None:
    adapter = llama.adapter(3, dora=dora)
    kind = subject.kind
    paths, peft = (kind.paths[:1], kind.peft[:1]) if dora else (kind.paths, kind.peft)
    sources = [adapter.write(tmp_path / f"own-{at}", before) for at, before in enumerate(paths)]
    sources += [adapter.write_peft(tmp_path / f"peft-{at}", before) for at, before in enumerate(peft)]
    model = subject.load()
    before = score(subject, model)
    wanted = llama.score(subject.tokens(model, TEXT), adapter)
    assert np.abs(wanted - before).max() > 0.1
    start = subject.tokens(model, TEXT)
    for source in sources:
        subject.run(model, LoadAdapterRequest(name="a", source=str(source)))
        assert np.abs(score(subject, model, "a") - wanted).max() < tolerance()
        (events,) = subject.run(model, continued(start, adapter="a", max_tokens=5, logprobs=True))
        found = said(events)
        expected = llama.score([*start, *(item.token_id for item in found)], adapter)[-5:]
        assert np.abs([item.logprob for item in found] - expected).max() < tolerance()
        assert np.array_equal(score(subject, model), before)
        subject.run(model, UnloadAdapterRequest(name="a"))
        assert np.array_equal(score(subject, model), before)
    assert not [name for name, _ in model.network.named_modules() if name.endswith(".base")]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "lora-and-dora"])
def test_two_adapters_and_the_base_in_one_batch_equal_their_solo_runs(
    subject: Subject, llama: Llama, tmp_path: Path, dora: bool
) -> None:
    model = subject.load()
    load(subject, model, llama.adapter(3), tmp_path, "a")
    load(subject, model, llama.adapter(4, rank=6, dora=dora), tmp_path, "b")
    params = {"max_tokens": 12, "ignore_eos": True, "top_logprobs": 2, "temperature": 0.0}
    requests = [
        make(TEXT * (1 + at % 2), adapter=adapter, **params)
        for at, adapter in enumerate(("a", None, "b", "base", "a"))
        for make in (subject.kind.conversation, raw)
    ]
    alone = [subject.run(model, item, prompt_cache=False)[0] for item in requests]
    assert len({drawn(events) for events in alone}) >= 3
    seen = subject.passes(model)
    for _ in range(2):  # the second time from the prompt caches, which are each adapter's own
        found = subject.run(model, *requests)
        for one, other in zip(found, alone, strict=True):
            check_same(one, other)
    assert max(rows for rows, _ in seen) >= 8, "in one batch"


def test_a_prompt_that_was_read_with_one_adapter_serves_no_other(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    model = subject.load()
    load(subject, model, llama.adapter(3), tmp_path, "a")
    load(subject, model, llama.adapter(4), tmp_path, "b")

    def ask(adapter: str) -> tuple[tuple[int, ...], int]:
        request = subject.kind.conversation(TEXT, adapter=adapter, max_tokens=6, ignore_eos=True)
        (events,) = subject.run(model, request)
        return drawn(events), TokenUsage.of(events[-1].usage).cached_tokens

    first = {adapter: ask(adapter) for adapter in ("a", "base", "b")}
    assert [cached for _, cached in first.values()] == [0, 0, 0]
    for adapter, (tokens, _) in first.items():
        again, cached = ask(adapter)
        assert again == tokens
        assert cached > 16
    subject.run(model, UnloadAdapterRequest(name="a"))
    load(subject, model, llama.adapter(5), tmp_path / "later", "a")
    assert ask("a")[1] == 0, "the name is another adapter's now"


def test_the_scale_of_an_adapter_can_be_chosen(subject: Subject, llama: Llama, tmp_path: Path) -> None:
    model = subject.load()
    load(subject, model, llama.adapter(3), tmp_path, "off", scale=0)
    load(subject, model, llama.adapter(3), tmp_path, "on")
    assert np.abs(score(subject, model, "off") - score(subject, model)).max() < 1e-6
    assert np.abs(score(subject, model, "on") - score(subject, model)).max() > 0.1


def test_a_model_loaded_with_an_adapter_uses_it_unless_asked_for_the_base(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    source = llama.adapter(3).write(tmp_path / "a", subject.kind.paths[0])
    plain, adapted = subject.load(), subject.load(adapter=str(source))

    def answer(model: Any, **params: Any) -> tuple[int, ...]:
        request = subject.kind.conversation(TEXT, max_tokens=12, ignore_eos=True, **params)
        return drawn(subject.run(model, request)[0])

    base = answer(plain)
    assert answer(adapted) != base
    assert answer(adapted, adapter="base") == base


def test_an_adapter_of_another_model_is_refused_by_name(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    source = llama.adapter(3).write(tmp_path / "a", subject.kind.paths[0])
    file = source / "adapters.safetensors"
    weights = load_file(str(file))
    name = f"{subject.kind.paths[0]}layers.0.self_attn.q_proj"
    size = weights[f"{name}.lora_a"].shape[0]
    weights[f"{name}.lora_a"] = np.zeros((size + 16, 4), dtype=np.float32)
    save_file(weights, str(file))
    model = subject.load()
    request = LoadAdapterRequest(name="a", source=str(source))
    with pytest.raises(
        IncompatibleWeightsError, match=rf"layers\.0\.self_attn\.q_proj maps {size} to {size}"
    ):
        subject.run(model, request)
    assert model.adapters.names == ()
    del weights[f"{name}.lora_a"]
    save_file(weights, str(file))
    with pytest.raises((IncompatibleWeightsError, CorruptFileError)):
        subject.run(model, request)
    more = llama.adapter(3)
    absent = {"layers.99.mlp.down_proj": more.layers["layers.0.mlp.down_proj"]}
    beyond = Adapter(layers=absent, rank=4).write(tmp_path / "beyond", subject.kind.paths[0])
    with pytest.raises(IncompatibleWeightsError, match=r"layers\.99\.mlp\.down_proj is not a linear layer"):
        subject.run(model, LoadAdapterRequest(name="a", source=str(beyond)))


def test_what_is_no_adapter_and_what_is_not_loaded_is_refused(subject: Subject, tmp_path: Path) -> None:
    model = subject.load()
    with pytest.raises(ModelNotFoundError):
        subject.run(model, LoadAdapterRequest(name="a", source=str(tmp_path / "nowhere")))
    with pytest.raises(LoadError, match="adapter_config"):
        subject.run(model, LoadAdapterRequest(name="a", source=str(tmp_path)))
    for request in (raw("x", adapter="a"), ScoreRequest(text=TEXT, adapter="a")):
        with pytest.raises(InvalidParameterError, match="base"):
            subject.run(model, request)
    with pytest.raises(InvalidParameterError):
        subject.run(model, UnloadAdapterRequest(name="a"))


def test_without_the_feature_no_adapter_is_loaded_or_used(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    source = llama.adapter(3).write(tmp_path / "a", subject.kind.paths[0])
    model = subject.load()
    for request in (LoadAdapterRequest(name="a", source=str(source)), raw("x", adapter="base")):
        with pytest.raises(FeatureUnavailableError):
            subject.run(model, request, lora=False)
    with pytest.raises(FeatureUnavailableError):
        subject.load(adapter=str(source), flags={"lora": False})


def test_an_adapter_in_use_is_not_unloaded(subject: Subject, llama: Llama, tmp_path: Path) -> None:
    model = subject.load()
    load(subject, model, llama.adapter(3), tmp_path, "a")
    long = "a text that is read in pieces " * 20
    for request in (raw("x", max_tokens=20, adapter="a"), ScoreRequest(text=long, adapter="a")):
        stream = subject.plugin.start(model, request, budget_ms=0.001)
        with subject.plugin.backend.stream():
            while next(stream) is not None:  # until the first pass, the prompt is only prepared
                pass
        with pytest.raises(InvalidParameterError, match="in use by 1"):
            subject.run(model, UnloadAdapterRequest(name="a"))
        stream.close()
    subject.run(model, UnloadAdapterRequest(name="a"))


def test_what_was_loaded_beside_the_weights_is_there_again_after_an_eviction(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    folders = [
        llama.adapter(seed).write(tmp_path / name, subject.kind.paths[0])
        for name, seed in (("a", 3), ("b", 7))
    ]
    params = GenerateParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    with InferenceEngine(plugins=[(subject.kind.name, subject.kind.hooks)]) as engine:
        chat = engine.load_text(subject.folder)
        plain = chat.generate(TEXT, params).text

        def evicted() -> str:
            [live] = engine._pool.live()
            assert engine._pool.ledger.evict(live, "for this test")
            return chat.generate(TEXT, params).text

        chat.load_adapter(str(folders[0]), "a", default=True)
        chat.load_adapter(str(folders[1]), "b", scale=0.5)
        adapted = chat.generate(TEXT, params).text
        assert adapted != plain
        assert evicted() == adapted
        chat.unload_adapter("a")
        assert evicted() == plain
        (folders[1] / "adapters.safetensors").unlink()
        with pytest.raises(LoadError):  # refused, and not silently without it
            evicted()


def test_an_adapter_of_the_configuration_is_not_loaded_twice(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    source = llama.adapter(3).write(tmp_path / "a", subject.kind.paths[0])
    model = subject.load(adapter=str(source))
    assert model.adapters.setup() == ()
    subject.run(model, UnloadAdapterRequest(name="default"))
    assert model.adapters.setup() == (UnloadAdapterRequest(name="default"),)


VISION = next(kind for kind in KINDS if kind.name == "vlm")
seeing = pytest.mark.parametrize("subject", [VISION], ids=["vlm"], indirect=True)


@seeing
def test_a_picture_is_answered_as_by_the_checkpoint_that_the_adapter_was_merged_into(
    subject: Subject, llama: Llama, tmp_path: Path
) -> None:
    adapter = llama.adapter(3)
    model = subject.load()
    load(subject, model, adapter, tmp_path, "a")
    merged = subject.load(llama.merged(tmp_path / "merged", adapter, subject.folder))
    params = {"max_tokens": 12, "ignore_eos": True, "top_logprobs": 2, "temperature": 0.0}
    for text in ("What shape is this?", "Describe the picture as JSON."):
        (found,) = subject.run(model, subject.kind.conversation(text, adapter="a", **params))
        (wanted,) = subject.run(merged, subject.kind.conversation(text, **params))
        (base,) = subject.run(model, subject.kind.conversation(text, **params))
        check_same(found, wanted, within=1e-3)
        change = [one.logprob - other.logprob for one, other in zip(said(found), said(base), strict=False)]
        assert max(map(abs, change)) > 0.01


@seeing
@pytest.mark.parametrize(
    "layer",
    [
        "model.vision_model.encoder.layers.0.self_attn.q_proj",  # as in the checkpoint
        "vision_model.encoder.layers.0.self_attn.q_proj",  # as in mlx-vlm
        "model.connector.modality_projection.proj",
    ],
)
def test_an_adapter_of_the_vision_tower_is_refused_with_the_name_of_a_layer(
    subject: Subject, llama: Llama, tmp_path: Path, layer: str
) -> None:
    language = llama.adapter(3)
    a, b, _ = language.layers["layers.0.self_attn.q_proj"]
    both = {**{f"model.text_model.{name}": value for name, value in language.layers.items()}}
    both[layer] = (a[:192], b[:, :192].copy(), None)
    source = Adapter(layers=both, rank=4).write_peft(tmp_path / "both", "")
    model = subject.load()
    with pytest.raises(LoadError, match=layer.replace(".", r"\.")) as refused:
        subject.run(model, LoadAdapterRequest(name="a", source=str(source)))
    assert refused.value.hint
    assert model.adapters.names == ()
