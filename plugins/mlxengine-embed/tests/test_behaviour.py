"""What must hold for any text: no NaN, no influence of neighbours, truncation that is told, typed errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import embed_checkpoints
import numpy as np
import pytest
from embed_texts import mixed_texts
from mlxengine import EmbeddingHandle, Embeddings, EmbedRequest, Finished, InferenceEngine, RankRequest
from mlxengine.errors import (
    IncompatibleWeightsError,
    InvalidParameterError,
    UnsupportedArchitectureError,
    UnsupportedInputError,
)
from mlxengine_embed import EmbedConfiguration

Load = Callable[[str], EmbeddingHandle]
WORDS = embed_checkpoints.word_texts()
ARCHITECTURES = ["bert-mean", "bert-last", "xlm-roberta", "modernbert", "qwen3", "gemma3"]
ARCHITECTURES += ["mpnet", "deberta", "nomic", "mistral", "llama-both-ways", "t5"]


def cosine(left: Any, right: Any) -> Any:
    return (left * right).sum(-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_vector_does_not_depend_on_what_else_is_in_its_batch(random_model: Load, name: str) -> None:
    model = random_model(name)
    together = model.embed(WORDS, batch_tokens=10**6).numpy()
    alone = np.concatenate([model.embed(text).numpy() for text in WORDS])
    assert cosine(together, alone).min() > 0.999999
    assert np.abs(together - alone).max() < 1e-5 * max(1, np.abs(alone).max())


@pytest.mark.parametrize(
    ("name", "removed", "published"),
    [
        ("gte-published", ("rope_parameters",), {"model_type": "new", "rope_theta": 160000}),
        (
            "nomic-published",
            ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
            {"n_embd": 64, "n_inner": 96, "n_layer": 3, "n_head": 4, "activation_function": "swiglu"},
        ),
    ],
)
def test_the_published_form_of_a_configuration_gives_the_same_vectors(
    engine: InferenceEngine, random_root: Path, tmp_path: Path, name: str, removed: Any, published: Any
) -> None:
    folder = tmp_path / name
    shutil.copytree(embed_checkpoints.write(name, random_root), folder)
    config = json.loads((folder / "config.json").read_text())
    for key in removed:
        del config[key]
    if "n_embd" in published:
        del config["rope_parameters"]
        published = {**published, "rotary_emb_base": 1000, "layer_norm_epsilon": config.pop("layer_norm_eps")}
    (folder / "config.json").write_text(json.dumps({**config, **published}))
    with engine.load_embeddings(folder) as model, engine.load_embeddings(random_root / name) as other:
        assert np.abs(model.embed(WORDS).numpy() - other.embed(WORDS).numpy()).max() < 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_text_gives_nan(random_model: Load, name: str, precision: str) -> None:
    texts = ["", "   ", "<s> </s>", "<pad> <pad>", "<unk>", " ".join(["w1"] * 480), "w1"]
    found = random_model(name).embed(texts, precision=precision)
    assert np.isfinite(found.numpy()).all()
    assert found.truncated == (5,)


def test_no_texts_give_an_empty_matrix(random_model: Load) -> None:
    model = random_model("bert-dense")
    assert model.embed([]).numpy().shape == (0, 16)
    assert model.embed([], precision="ubinary").numpy().shape == (0, 2)
    assert list(model.embed(iter(()))) == []
    assert random_model("bert-reranker").rank("w1", []) == ()


def test_a_tokenizer_without_special_tokens_gives_zeros_for_an_empty_text(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(embed_checkpoints.write("bert-mean", random_root), folder)
    embed_checkpoints.write_tokenizer(folder, "plain")
    with engine.load_embeddings(folder) as model:
        found = model.embed(["", "w1 w2"]).numpy()
    assert not found[0].any()
    assert found[1].any()


def test_a_text_of_ten_times_the_maximum_is_cut_as_its_beginning_is(minilm_model: EmbeddingHandle) -> None:
    long = "river " * 2560
    found = minilm_model.embed([long, "river " * 254, "river"])
    vectors = found.numpy()
    assert found.truncated == (0,)
    assert cosine(vectors[0], vectors[1]) > 0.999999
    assert found.usage.prompt_tokens == 256 + 256 + 3
    assert dict(found.metrics.extra)["truncated"] == 1


def test_token_ids_give_the_vectors_of_their_texts(
    minilm_model: EmbeddingHandle, minilm_folder: Path
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["A cat sleeps.", "Shares fell sharply in the morning.", "x"]
    ids = [tokenizer.encode(text).ids for text in texts]
    found, wanted = minilm_model.embed(ids), minilm_model.embed(texts)
    assert np.abs(found.numpy() - wanted.numpy()).max() < 1e-6
    assert found.usage.prompt_tokens == sum(map(len, ids)) == wanted.usage.prompt_tokens
    assert [len(item.numpy()) for item in minilm_model.embed(ids, output="tokens")] == list(map(len, ids))
    wrong: list[Any] = [
        [[]],
        [ids[0], "a text"],
        ["a text", ids[0]],
        [[10**6]],
        [[-1]],
        [[True]],
        [[1] * 600],
        [1, 2],
        [[1.5]],
    ]
    for inputs in wrong:
        with pytest.raises(InvalidParameterError):
            minilm_model.embed(inputs)
    with pytest.raises(InvalidParameterError, match="No prompt"):
        minilm_model.embed(ids, prompt="query: ")


def test_vectors_come_in_the_order_of_the_texts_with_progress(minilm_model: EmbeddingHandle) -> None:
    texts = mixed_texts()[27:60]
    seen: list[tuple[int, int | None]] = []
    whole = minilm_model.embed(texts, batch_tokens=128, progress=lambda *s: seen.append(s)).numpy()
    assert seen[-1] == (33, 33)
    assert seen == sorted(seen)
    assert len(seen) > 3
    for index in (0, 16, 32):
        assert cosine(whole[index], minilm_model.embed(texts[index]).numpy()[0]) > 0.999999


def test_an_iterator_is_read_as_its_vectors_are_taken(random_model: Load) -> None:
    model = random_model("bert-mean")
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for index in range(10_000):
            read += 1
            yield f"w{index % 200}"

    vectors = model.embed(texts())
    first = next(vectors)
    assert first.shape == (64,)
    assert read < 10_000
    assert np.allclose(first.numpy(), model.embed("w0").numpy()[0], atol=1e-5)
    with pytest.raises(InvalidParameterError, match="range"):
        model.embed(iter(["w1"]), precision="int8")


def test_eight_bit_ranges_can_be_given(minilm_model: EmbeddingHandle) -> None:
    texts = mixed_texts()[27:60]
    vectors = minilm_model.embed(texts).numpy()
    ranges = (vectors.min(axis=0).tolist(), vectors.max(axis=0).tolist())
    own = minilm_model.embed(texts, precision="int8").numpy()
    given = np.stack([v.numpy() for v in minilm_model.embed(iter(texts), precision="int8", ranges=ranges)])
    # Vectors of another batch differ in the last bits, and may cross the border of a step.
    assert (own != given).mean() < 0.002
    with pytest.raises(InvalidParameterError, match="single text"):
        minilm_model.embed("one", precision="int8")


def test_events_are_one_batch_a_step_and_their_bytes_are_read_without_copying(
    minilm_model: EmbeddingHandle,
) -> None:
    result = minilm_model.run(EmbedRequest(texts=mixed_texts()[27:60], batch_tokens=256))
    assert isinstance(result.finished, Finished)
    batches = [event for event in result.events if isinstance(event, Embeddings)]
    assert len(batches) > 3
    assert sorted(index for event in batches for index in event.indices) == list(range(33))
    assert batches[0].vectors is not None
    view = batches[0].vectors.numpy()
    assert isinstance(batches[0].vectors.data, bytes)
    assert not view.flags.owndata
    assert dict(result.metrics.extra)["padding_share"] < 0.3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prompt_name": "nobody"}, "prompt_name='nobody' is no prompt of"),
        ({"prompt": "a", "prompt_name": "query"}, "either"),
        ({"truncate_dim": 385}, "more than the 384"),
        ({"truncate_dim": 0}, "positive"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"output": "words"}, "output='words'"),
        ({"output": "tokens", "precision": "int8"}, "does not go"),
        ({"batch_tokens": 0}, "batch_tokens"),
    ],
)
def test_a_bad_argument_is_a_typed_error(
    minilm_model: EmbeddingHandle, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidParameterError, match=match):
        minilm_model.embed(["a", "b"], **arguments)


@pytest.mark.parametrize("text", [3, None, b"bytes", ["nested"]])
def test_a_text_that_is_none_is_a_typed_error(minilm_model: EmbeddingHandle, text: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"texts\[1\]"):
        minilm_model.embed(["a", text])
    with pytest.raises(InvalidParameterError, match="found one"):
        EmbedRequest(texts="abc")  # type: ignore[arg-type]


def test_a_broken_text_fails_its_own_request_only(minilm_model: EmbeddingHandle) -> None:
    with pytest.raises(InvalidParameterError, match="surrogate"):
        minilm_model.embed(["fine", "half a pair \ud83d"])
    assert np.isfinite(minilm_model.embed("fine").numpy()).all()


def test_an_embedding_model_does_not_rank_and_a_reranker_does_not_embed(
    minilm_model: EmbeddingHandle, random_model: Load
) -> None:
    with pytest.raises(UnsupportedInputError, match="not a cross-encoder"):
        minilm_model.run(RankRequest(query="a", documents=("b",)))
    with pytest.raises(UnsupportedInputError, match="reranker"):
        random_model("bert-reranker").embed("w1")


def test_similarity_takes_texts_and_vectors(minilm_model: EmbeddingHandle) -> None:
    texts = ["a cat", "a kitten", "the stock market fell"]
    table = minilm_model.similarity(texts).numpy()
    assert table.shape == (3, 3)
    assert np.allclose(np.diag(table), 1, atol=1e-5)
    assert table[0, 1] > 0.6 > 0.3 > table[0, 2]
    vectors = minilm_model.embed(texts)
    assert np.allclose(minilm_model.similarity(vectors, vectors.numpy()[:1]).numpy(), table[:, :1], atol=1e-5)
    with pytest.raises(InvalidParameterError, match="cannot be compared"):
        minilm_model.similarity(vectors, [[1.0, 2.0]])


def in_eight_bits(folder: Path, unpacked: bool) -> Path:
    """Its matrices in eight bits, as a conversion has them; or what these stand for."""
    import mlx.core as mx

    path, packed = folder / "model.safetensors", {}
    weights: dict[str, Any] = dict(mx.load(str(path)))
    for key, value in weights.items():
        if value.ndim != 2 or value.shape[1] % 32 or "position" in key or "token_type" in key:
            packed[key] = value
            continue
        stem, parts = key.removesuffix(".weight"), mx.quantize(value, group_size=32, bits=8)
        if unpacked:
            packed[key] = mx.dequantize(*parts, group_size=32, bits=8)
        else:
            packed |= zip((key, f"{stem}.scales", f"{stem}.biases"), parts, strict=True)
    mx.save_safetensors(str(path), packed)
    if not unpacked:
        config = json.loads((folder / "config.json").read_text())
        config["quantization"] = {"group_size": 32, "bits": 8}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.feature("embed.quantization")
@pytest.mark.parametrize("name", ["bert-mean", "xlm-roberta", "modernbert", "qwen3", "gemma3"])
def test_an_encoder_of_eight_bits_stays_near_the_reference(
    engine: InferenceEngine, random_root: Path, tmp_path: Path, references: Any, name: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(embed_checkpoints.write(name, random_root), folder)
    with engine.load_embeddings(in_eight_bits(folder, unpacked=False)) as model:
        found = model.embed(WORDS).numpy()
    assert cosine(found, references[name]).min() >= 0.999


@pytest.mark.parametrize(
    "name", ["mpnet", "deberta", "nomic-published", "gte-published", "t5-gated", "albert"]
)
def test_eight_bits_are_what_they_stand_for(
    engine: InferenceEngine, random_root: Path, tmp_path: Path, name: str
) -> None:
    found = []
    for unpacked in (False, True):
        folder = tmp_path / str(unpacked)
        shutil.copytree(embed_checkpoints.write(name, random_root), folder)
        with engine.load_embeddings(in_eight_bits(folder, unpacked)) as model:
            found.append(model.embed(WORDS[:8]).numpy())
    assert np.abs(found[0] - found[1]).max() < 1e-4


def test_an_encoder_of_our_own_needs_no_library_for_models(random_root: Path) -> None:
    folder = embed_checkpoints.write("bert-mean", random_root)
    script = (
        "import sys; from mlxengine import InferenceEngine\n"
        f"with InferenceEngine() as engine: engine.load_embeddings({str(folder)!r}).embed('w1')\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'mlx_embeddings', 'mlx_lm', 'mlx_vlm'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.feature("embed.custom_tokenizers")
def test_a_tokenizer_of_the_repositorys_own_is_used(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(embed_checkpoints.write("bert-mean", random_root), folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with (
        engine.load_embeddings(folder) as swapped,
        engine.load_embeddings(embed_checkpoints.write("bert-mean", random_root)) as plain,
    ):
        assert np.allclose(swapped.embed("w1 w3").numpy(), plain.embed("w2 w3").numpy(), atol=1e-6)
        assert swapped.info["tokenizer"] != "BertTokenizer"


@pytest.mark.feature("embed.cpu_kernels")
def test_the_quicker_cpu_blocks_change_nothing_that_matters(
    engine: InferenceEngine, minilm_folder: Path, minilm_model: EmbeddingHandle
) -> None:
    texts = mixed_texts()[20:50]
    with engine.load_embeddings(minilm_folder, features={"embed.cpu_kernels": False}) as library:
        assert library.info["cpu_kernels"] == ""
        found = library.embed(texts).numpy()
    assert np.abs(found - minilm_model.embed(texts).numpy()).max() < 5e-6


def test_a_batch_ends_where_padding_what_follows_would_cost_more_than_another_batch() -> None:
    from mlxengine_embed._batches import plan_batches

    assert [len(batch) for batch in plan_batches([40] * 27 + [200] * 5, 16384)] == [5, 27]
    assert [len(batch) for batch in plan_batches([200, *[190] * 20], 16384)] == [21]  # 200 tokens of padding
    assert [len(batch) for batch in plan_batches([200, *[40] * 27], 600)] == [
        3,
        15,
        10,
    ]  # few would be padded
    assert sorted(place for batch in plan_batches([3, 0, 9, 400, 0], 1) for place in batch) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["bert-mean", "xlm-roberta", "modernbert"])
def test_the_blocks_for_a_gpu_change_nothing(random_root: Path, name: str) -> None:
    import mlx.core as mx
    from mlxengine.toolkit.checkpoint import normalise_config
    from mlxengine_embed._blocks import use_gpu_blocks
    from mlxengine_embed._encoders import build_encoder
    from mlxengine_embed._weights import fill, read_folder

    folder = embed_checkpoints.write(name, random_root)
    encoder = build_encoder(normalise_config(json.loads((folder / "config.json").read_text())))
    fill(encoder.module, read_folder(folder), encoder.rename, None, name)
    ids = mx.array([[1, 9, 50, 7, 2], [1, 30, 2, encoder.pad, encoder.pad]])
    valid = mx.array([[True] * 5, [True] * 3 + [False] * 2])
    before = np.array(encoder.forward(ids, valid, None))
    use_gpu_blocks(encoder.module)
    after = np.array(encoder.forward(ids, valid, None))
    assert np.abs(after - before)[0].max() < 1e-5
    assert np.abs(after - before)[1, :3].max() < 1e-5


def test_a_model_arrives_from_the_hub_with_nothing_but_what_it_needs(minilm: Any, hub_home: Path) -> None:
    with InferenceEngine(endpoint=minilm.endpoint, cache_dir=hub_home / "hub") as engine:
        with engine.load_embeddings(minilm.id) as model:
            assert model.embed("a cat").shape == (1, 384)
        owner = engine.explain(minilm.id)
        assert owner.record.name == "embed"
        assert owner.claim.reason == "sentence-transformers files, bert by mlxengine_embed._bert"


def test_a_bare_encoder_needs_a_pooling(engine: InferenceEngine, random_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(embed_checkpoints.write("bert-cls", random_root), folder)
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(UnsupportedArchitectureError, match="says nothing about pooling") as caught:
        engine.load_embeddings(folder)
    assert "EmbedConfiguration" in str(caught.value.hint)
    configured = EmbedConfiguration(id=str(folder), pooling="cls", max_length=48)
    with engine.load_embeddings(configured) as model:
        expected = engine.load_embeddings(embed_checkpoints.write("bert-cls", random_root))
        assert np.abs(model.embed(WORDS).numpy() - expected.embed(WORDS).numpy()).max() < 1e-6
    renamed = folder.rename(tmp_path / "bge-small-en-v1.5")
    with engine.load_embeddings(renamed) as family:
        assert family.info["pooling"] == ("cls",)
        assert family.info["normalize"]
        assert "query" in family.info["prompts"]


def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(embed_checkpoints.write("bert-mean", random_root), folder)
    weights = load_file(folder / "model.safetensors")
    weights["surplus.weight"] = weights.pop("encoder.layer.1.output.dense.bias")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(IncompatibleWeightsError) as caught:
        engine.load_embeddings(folder)
    assert "encoder.layer.1.output.dense.bias" in str(caught.value)
    assert "surplus.weight" in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_a_hundred_thousand_texts(random_model: Load) -> None:
    import resource

    model = random_model("bert-mean")

    def peak_after(count: int) -> int:
        texts = (" ".join(f"w{(index + k) % 200}" for k in range(1 + index % 7)) for index in range(count))
        taken = sum(1 for _ in model.embed(texts))
        assert taken == count
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    peak_after(1_000)
    ten_thousand = peak_after(10_000)
    assert peak_after(100_000) <= 1.2 * ten_thousand


def test_a_converted_embeddinggemma_projects_as_its_repository_does(
    engine: InferenceEngine, random_root: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    source = embed_checkpoints.write("gemma3", random_root)
    random, size = np.random.default_rng(9), embed_checkpoints.SIZE
    up, down = (random.standard_normal(s).astype(np.float32) for s in ((4 * size, size), (size, 4 * size)))
    whole, bare = tmp_path / "whole", tmp_path / "embeddinggemma-300m"
    shutil.copytree(source, whole)
    embed_checkpoints.write_modules(whole, {"pooling_mode": "mean"}, "Dense", "Dense", "Normalize")
    for place, (matrix, inputs, outputs) in enumerate(((up, size, 4 * size), (down, 4 * size, size)), 2):
        folder = whole / f"{place}_Dense"
        folder.mkdir()
        settings = {"in_features": inputs, "out_features": outputs, "bias": False}
        identity = "torch.nn.modules.linear.Identity"
        (folder / "config.json").write_text(json.dumps({**settings, "activation_function": identity}))
        save_file({"linear.weight": matrix}, folder / "model.safetensors")
    shutil.copytree(source, bare)
    shutil.rmtree(bare / "1_Pooling")
    (bare / "modules.json").unlink()
    weights = load_file(bare / "model.safetensors")
    save_file({**weights, "dense.0.weight": up, "dense.1.weight": down}, bare / "model.safetensors")
    with engine.load_embeddings(whole) as left, engine.load_embeddings(bare) as right:
        assert right.info["recipe"] == "family embeddinggemma"
        found, expected = right.embed(WORDS, prompt="").numpy(), left.embed(WORDS).numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_the_asyncio_handle_gives_the_same(random_root: Path) -> None:
    import asyncio

    from mlxengine import AsyncInferenceEngine

    async def all_of_it() -> tuple[Any, ...]:
        async with AsyncInferenceEngine() as engine:
            model = await engine.load_embeddings(embed_checkpoints.write("bert-dense", random_root))
            ranker = await engine.load_embeddings(embed_checkpoints.write("bert-reranker", random_root))
            vectors, query = await asyncio.gather(model.embed(WORDS), model.embed_query(WORDS))
            tokens = await model.embed(WORDS, output="tokens")
            rows = [row async for row in await model.embed(iter(WORDS), precision="float16")]
            alike = await model.similarity(WORDS[:3], vectors)
            return vectors, query, tokens, rows, alike, await ranker.rank(WORDS[4], WORDS, top_k=3)

    vectors, query, tokens, rows, alike, ranked = asyncio.run(all_of_it())
    with InferenceEngine() as engine:
        model = engine.load_embeddings(embed_checkpoints.write("bert-dense", random_root))
        assert np.abs(vectors.numpy() - model.embed(WORDS).numpy()).max() < 1e-6
        assert np.abs(query.numpy() - model.embed_query(WORDS).numpy()).max() < 1e-6
        for here, there in zip(tokens, model.embed(WORDS, output="tokens"), strict=True):
            assert np.abs(here.numpy() - there.numpy()).max() < 1e-6
        there = model.embed(WORDS, precision="float16").numpy()
        assert rows[0].dtype == "float16"
        assert np.abs(np.stack([row.numpy() for row in rows]) - there).max() < 1e-3
        assert np.abs(alike.numpy() - model.similarity(WORDS[:3], vectors).numpy()).max() < 1e-6
    assert len(ranked) == 3
    assert ranked[0].score >= ranked[2].score


@pytest.mark.parametrize("name", ["bert-mean", "modernbert", "gemma3"])
def test_half_precision_weights_give_the_reference_within_their_rounding(
    engine: InferenceEngine, random_root: Path, tmp_path: Path, references: Any, name: str
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / name
    shutil.copytree(embed_checkpoints.write(name, random_root), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({key: value.astype(np.float16) for key, value in weights.items()}, folder / "model.safetensors")
    with engine.load_embeddings(folder) as model:
        found = model.embed(["", *WORDS]).numpy()
    assert np.isfinite(found).all()
    assert cosine(found[1:], references[name]).min() > 0.9999
