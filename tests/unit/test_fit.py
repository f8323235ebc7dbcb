"""Whether a model fits: the arithmetic, the verdicts, the words, and the record of how good they were."""

import json

import attrs
import pytest
from mlxengine import (
    Claim,
    Device,
    FileInfo,
    Fit,
    FitVerdict,
    Kind,
    MemoryEstimate,
    ModelCard,
    ModelConfiguration,
    ModelRef,
    Source,
    TensorInfo,
    TextWorkload,
)
from mlxengine._hub.search import memory_verdict
from mlxengine._memory import history
from mlxengine._registry.selection import needed_bytes
from mlxengine.cli import main
from mlxengine.contract.fit import fit, rough
from mlxengine.toolkit.estimate import estimator, loaded_weights

GB = 10**9
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


SILENT = {"layer_types": ["linear_attention", "full_attention"]}


def card(tensors=(), **config):
    return ModelCard(
        ref=ModelRef(repo_id="org/name"),
        configuration=ModelConfiguration(id="org/name"),
        source=Source.HUB,
        commit="0" * 40,
        files=(FileInfo(path="model.safetensors", size=1),),
        documents={"config.json": {**LLAMA, **config}},
        tensors=tuple(
            TensorInfo(name=name, dtype=dtype, shape=(1,), nbytes=size, file="model.safetensors")
            for name, dtype, size in tensors
        ),
    )


def test_a_key_value_cache_counts_its_heads_windows_and_bits():
    plain = estimator(card())(TextWorkload(context_length=512, batch=3))
    # 2 layers × keys and values × 2 heads of 16 × 512 tokens × 3 requests × 2 bytes
    assert plain.cache == 2 * 2 * 2 * 16 * 512 * 3 * 2
    assert (
        estimator(card())(TextWorkload(context_length=512, batch=3, backend="cpu")).cache == 2 * plain.cache
    )
    quantized = estimator(card())(TextWorkload(context_length=512, batch=3, kv_bits=4))
    assert quantized.cache == pytest.approx(plain.cache * 5 / 16)  # groups of 32
    kinds = ["sliding_attention", "full_attention"]
    sliding = estimator(card(sliding_window=256, layer_types=kinds))(
        TextWorkload(context_length=512, batch=3)
    )
    assert sliding.cache == plain.cache * 3 // 4


def test_caches_that_a_configuration_does_not_tell_are_called_a_guess():
    told, guess = (estimator(card(**more))(TextWorkload(context_length=512)) for more in ({}, SILENT))
    assert (told.cache_known, guess.cache_known) == (True, False)
    for estimate, said in ((told, False), (guess, True)):
        claim = Claim(kind="llm", fit=Fit.NATIVE, estimate=lambda _, estimate=estimate: estimate)
        report = fit(card(), claim, Kind(name="llm"), Device(backend="metal", name="M9", working_set=GB))
        assert ("measured when the model is loaded" in report.explanation[1]) is said


def test_weights_are_reckoned_as_they_are_kept_on_the_back_end():
    half = card([("a.weight", "F16", 1000), ("b.weight", "F32", 500)])
    assert loaded_weights(half, TextWorkload(backend="metal")) == 1500
    assert loaded_weights(half, TextWorkload(backend="cpu")) == 2500
    packed = card(
        [
            ("a.weight", "U32", 4000),
            ("a.scales", "F16", 500),
            ("a.biases", "F16", 500),
            ("n.weight", "F16", 10),
        ],
        quantization={"group_size": 32, "bits": 4},
    )
    assert loaded_weights(packed, TextWorkload(backend="cuda")) == 5010
    assert loaded_weights(packed, TextWorkload(backend="cpu", free_memory=GB)) == 4000 * 8 + 20
    assert loaded_weights(packed, TextWorkload(backend="cpu", free_memory=40_000)) == 4000 + 2000 + 20
    cuda = TextWorkload(backend="cuda", free_memory=GB)
    assert loaded_weights(packed, cuda) == packed.weight_bytes
    assert loaded_weights(packed, cuda, dense_on=("cpu", "cuda")) == 4000 * 4 + 10
    assert estimator(packed)(cuda).weights == 4000 * 4 + 10
    assert estimator(packed)(attrs.evolve(cuda, free_memory=20_000)).weights == packed.weight_bytes


@pytest.mark.parametrize(
    ("weights", "budget", "verdict", "words"),
    [
        (5 * GB, 10 * GB, FitVerdict.FITS, "fits on"),
        (9 * GB, 10 * GB, FitVerdict.TIGHT, "tightly"),
        (11 * GB, 10 * GB, FitVerdict.WONT_FIT, "does not fit"),
        (11 * GB, None, FitVerdict.UNKNOWN, "may or may not"),
    ],
)
def test_the_verdict_comes_with_its_arithmetic_in_three_lines(weights, budget, verdict, words):
    claim = Claim(kind="llm", fit=Fit.NATIVE, estimate=lambda _: MemoryEstimate(weights=weights))
    report = fit(card(), claim, Kind(name="llm"), Device(backend="metal", name="M9", working_set=budget))
    assert report.verdict is verdict
    assert report.margin == (None if budget is None else budget - weights)
    first, second, third = report.explanation
    assert words in first
    assert "weights" in second
    assert third


def test_search_recommend_and_fit_reckon_alike_where_nobody_knows_better() -> None:
    found = card([("a", "F16", GB)])
    weights = found.weight_bytes
    claim = Claim(kind="x", fit=Fit.NATIVE)
    wide = Device(backend="metal", name="M9", working_set=10 * GB)
    needed = fit(found, claim, Kind(name="x"), wide).needed
    assert needed == GB + weights // 5
    entry = ModelConfiguration(id="a/b", kind="x", memory_bytes=weights)
    for room, fits in ((needed, True), (needed - 1, False)):
        device = attrs.evolve(wide, working_set=room)
        verdict = fit(found, claim, Kind(name="x"), device).verdict
        assert verdict is memory_verdict(weights, None, device)
        assert (verdict is not FitVerdict.WONT_FIT) is fits
        assert (needed_bytes(entry, device) <= room) is fits


def test_weights_are_reckoned_as_they_are_kept_on_the_device() -> None:
    cpu = Device(backend="cpu", name="C", free_memory=10 * GB)
    assert rough(2 * GB, GB, cpu).weights == 4 * GB
    assert rough(GB // 2, GB, cpu).weights == 4 * GB
    assert rough(GB // 2, GB, attrs.evolve(cpu, free_memory=7 * GB)).weights == GB // 2
    assert rough(GB // 2, GB, attrs.evolve(cpu, backend="cuda")).weights == 2 * GB
    assert rough(GB // 2, GB, attrs.evolve(cpu, backend="metal")).weights == GB // 2


def test_loads_are_put_on_record_and_a_damaged_line_is_passed_over(tmp_path, monkeypatch, capsys):
    path = tmp_path / "state" / "loads.jsonl"
    monkeypatch.setenv("MLXENGINE_HISTORY", str(path))
    history.record("org/name", "llm", "cpu", predicted=110, weights=100, peak=130)
    with path.open("a") as out:
        out.write('{"model": 3}\nrubbish\n')
    old = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as out:
        out.write(json.dumps({k: v for k, v in old.items() if "cache" not in k} | {"predicted": 120}) + "\n")
    sizes = {"predicted": 90, "weights": 100, "peak": 130, "predicted_cache": 700, "cache": 100}
    history.record("org/other", "llm", "cpu", **sizes)
    assert [item.cache for item in history.read()] == [None, None, 100]
    assert [item.error for item in history.read()] == pytest.approx([0.1, 0.2, -0.1])
    assert main(["fit", "--history", "org/name", "--json"]) == 0
    assert [item["model"] for item in json.loads(capsys.readouterr().out)["loads"]] == ["org/name"] * 2
    assert main(["fit", "--history", "org/other"]) == 0
    assert "100 B of 700 B" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "arguments", [[], ["x/y", "--size", "big"], ["x/y", "--batch", "0"], ["x/y", "--context", "-1"]]
)
def test_wrong_arguments_of_fit_are_usage_errors(arguments, capsys):
    assert main(["fit", *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]
