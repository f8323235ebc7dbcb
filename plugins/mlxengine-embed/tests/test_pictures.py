"""Models that see: the same numbers as transformers and sentence-transformers on torch, and bad pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import picture_checkpoints
import pytest
from mlxengine import EmbeddingHandle, ImagePart, InferenceEngine, ModelCard, hub
from mlxengine.cli import main
from mlxengine.errors import (
    FeatureUnavailableError,
    InvalidParameterError,
    LoadError,
    UnsupportedInputError,
)
from mlxengine.toolkit.pictures import picture
from mlxengine_embed import EmbedConfiguration
from mlxengine_embed._eye import build_processor
from mlxengine_embed._sight import read_sight
from safetensors.numpy import load_file

Load = Callable[[str], EmbeddingHandle]
References = Mapping[str, Any]
PICTURES = [ImagePart(item) for item in picture_checkpoints.pictures()]


@pytest.fixture(scope="module")
def seen() -> References:
    """What the reference gave; ``make_picture_references.py`` computes it."""
    return load_file(Path(__file__).with_name("pictures.safetensors"))


def card_of(folder: Path) -> ModelCard:
    return hub.resolve(str(folder))


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.feature("embed.pictures")
@pytest.mark.parametrize("name", sorted(picture_checkpoints.SEEING))
def test_texts_and_pictures_are_the_references(random_model: Load, seen: References, name: str) -> None:
    model, texts = random_model(name), picture_checkpoints.texts_of(name)
    plain = name == "clip-modules"  # its repository has no Normalize; the others' own comparison scales
    mixed = [texts[0], PICTURES[0], PICTURES[1], *texts[1:], *PICTURES[2:]]
    found = model.embed(mixed).numpy()
    expected = np.concatenate([seen[f"{name}/texts"], seen[f"{name}/pictures"]])
    order = [0, 5, 6, 1, 2, 3, 4, 7, 8, 9]
    assert np.abs(found - (expected if plain else unit(expected))[order]).max() < 1e-4
    if name != "clip-saved":  # whose reference is of unit length
        raw = model.embed(mixed, normalize=False).numpy()
        assert np.abs(raw - expected[order]).max() < 1e-4 * max(1, np.abs(expected).max())
    assert model.info["normalize"] is not plain
    assert len({tuple(row.round(3)) for row in found}) == len(mixed)


@pytest.mark.parametrize("name", sorted(picture_checkpoints.LATE))
def test_one_vector_a_patch_is_the_references(random_model: Load, seen: References, name: str) -> None:
    model, texts = random_model(name), picture_checkpoints.TEXTS
    assert (model.info["output"], model.info["similarity"]) == ("tokens", "maxsim")
    mixed = model.embed([PICTURES[0], *texts, *PICTURES[1:]], output="tokens", batch_tokens=100)
    arrays = [item.numpy() for item in mixed]
    assert arrays[0].shape[0] == 16 + 6  # the patches, and what is read after them
    found = {"texts": arrays[1 : 1 + len(texts)], "pictures": [arrays[0], *arrays[1 + len(texts) :]]}
    for part, rows in found.items():
        assert np.abs(np.concatenate(rows) - seen[f"{name}/{part}"]).max() < 1e-4
    scores = model.similarity(texts, PICTURES).numpy()
    assert np.abs(scores - seen[f"{name}/similarity"]).max() < 1e-4 * np.abs(scores).max()
    with pytest.raises(UnsupportedInputError, match="makes token vectors"):
        model.embed(PICTURES)


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_pixels_are_those_of_the_references_processor(random_root: Path, seen: References, name: str) -> None:
    card = card_of(picture_checkpoints.write(name, random_root))
    processor = build_processor(read_sight(card))
    for part, expected in zip(PICTURES, seen[f"{name}/pixels"], strict=True):
        (found,) = processor.preprocess(picture(part.source).image, return_tensors="np")["pixel_values"]
        assert np.abs(found - expected).max() < 1e-5


def test_texts_are_compared_with_pictures(random_model: Load, seen: References) -> None:
    model, texts = random_model("clip-modules"), picture_checkpoints.CLIP_TEXTS
    assert (model.info["similarity"], model.info["recipe"]) == ("cosine", "modules.json")
    found = model.similarity(texts, PICTURES).numpy()
    assert np.abs(found - seen["clip-modules/similarity"]).max() < 1e-5
    assert np.allclose(model.similarity(texts[0], PICTURES[1]).numpy(), found[:1, 1:2], atol=1e-6)
    hits = model.semantic_search([texts[1]], PICTURES, top_k=2)
    assert next(iter(hits))[0][0] == int(found[1].argmax())
    assert np.allclose(model.similarity_pairwise(texts, PICTURES).numpy(), found.diagonal(), atol=1e-5)


def test_pictures_come_as_files_bytes_or_arrays_and_from_an_iterator(
    random_model: Load, tmp_path: Path
) -> None:
    model, whole = random_model("clip"), picture_checkpoints.pictures()[0]
    whole.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), data, BytesIO(data), np.array(whole), whole]
    one = model.embed(ImagePart(whole)).numpy()
    assert one.shape == (1, picture_checkpoints.DIMENSION)
    rows = list(model.embed(item for item in ["a cat", *map(ImagePart, sources)]))
    assert np.allclose([row.numpy() for row in rows[1:]], one, atol=1e-6)
    assert model.embed([ImagePart(whole), "a cat"], precision="ubinary", truncate_dim=16).shape == (2, 2)
    few = model.embed([*PICTURES, "dog"], batch_tokens=1, truncate_dim=8).numpy()
    assert np.allclose(few, unit(model.embed([*PICTURES, "dog"]).numpy()[:, :8]), atol=1e-5)
    counted = model.embed([ImagePart(whole), "dog"]).usage.prompt_tokens
    assert counted == 17 + 3  # 4 × 4 patches and the class; the text between its two marks


def test_a_bad_picture_is_named_and_disturbs_nobody(random_model: Load, tmp_path: Path) -> None:
    model = random_model("clip")
    (tmp_path / "a.png").write_bytes(b"no picture")
    bad: list[Any] = [tmp_path / "a.png", tmp_path / "none.png", b"", 5, "https://example.org/a.png"]
    truncated = BytesIO()
    picture_checkpoints.pictures()[0].save(truncated, "PNG")
    bad += [truncated.getvalue()[:200], np.zeros((2, 2, 7), dtype=np.uint8)]
    good = model.embed(PICTURES).numpy()
    with ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(model.embed, PICTURES) for _ in range(2)]
        for source in bad:
            with pytest.raises(UnsupportedInputError, match=r"texts\[2\]: ") as caught:
                model.embed(["a cat", PICTURES[0], ImagePart(source)])
            assert str(caught.value).count(caught.value.hint or "no hint") == 1
        assert all(np.array_equal(item.result().numpy(), good) for item in beside)
    assert np.array_equal(model.embed(PICTURES).numpy(), good)


def test_who_does_not_see_says_so(random_model: Load, random_root: Path) -> None:
    plain, model = random_model("bert-mean"), random_model("clip")
    assert "vision" in model.capabilities
    assert "vision" not in plain.capabilities
    with pytest.raises(UnsupportedInputError, match="takes texts, not pictures") as caught:
        plain.embed(["w1", PICTURES[0]])
    assert "siglip2-base-patch16-224" in (caught.value.hint or "")
    for output in ("tokens", "sparse"):
        with pytest.raises(UnsupportedInputError, match="makes dense vectors"):
            model.embed("a cat", output=output)  # type: ignore[call-overload]
    with pytest.raises(InvalidParameterError, match="not a text"):
        model.embed([picture_checkpoints.pictures()[0]])  # type: ignore[list-item]
    with InferenceEngine(features={"embed.pictures": False}) as engine:
        blind = engine.load_embeddings(picture_checkpoints.write("clip", random_root))
        assert blind.embed("a cat").shape == (1, picture_checkpoints.DIMENSION)
        with pytest.raises(FeatureUnavailableError, match=r"embed\.pictures"):
            blind.embed(PICTURES[0])


def test_the_command_line_takes_pictures(
    random_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = str(picture_checkpoints.write("clip", random_root)), str(tmp_path / "a.png")
    picture_checkpoints.pictures()[0].save(file)
    for ending in ("npy", "jsonl"):
        target = tmp_path / f"v.{ending}"
        assert main(["embed", "-q", "-m", folder, "a cat", "--image", file, "--out", str(target)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a cat", file]
    assert np.allclose([row["vector"] for row in rows], np.load(tmp_path / "v.npy"), atol=1e-6)
    assert main(["embed", "-q", "--json", "-m", folder, "--image", file]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["vectors"]
    assert np.allclose(alone, rows[1]["vector"], atol=1e-6)
    assert main(["similarity", "--json", "-m", folder, "a cat", "--image", file]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["texts"] == ["a cat", file]
    assert told["table"][0][1] == pytest.approx(float(np.dot(*(row["vector"] for row in rows))), abs=1e-5)
    assert main(["similarity", "-m", folder, "--image", file]) == 2
    assert main(["embed", "-m", folder, "--image", str(tmp_path / "none.png")]) == 6


CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        ("clip", CONFIG, {"model_type": "siglip2"}, "architecture 'siglip2', which is not supported"),
        ("clip", CONFIG, {"model_type": "colqwen2"}, "architecture 'colqwen2', which is not supported"),
        ("clip", CONFIG, {"model_type": "qwen3_vl"}, "architecture 'qwen3_vl', which is not supported"),
        ("clip", CONFIG, {"gated": True}, "says gated=True, which is not supported"),
        ("clip", CONFIG, {"vision_config": {"patch_size": 64}}, "patch_size=64, of which nothing"),
        ("clip", CONFIG, {"vision_config": {"num_attention_heads": 5}}, "num_attention_heads"),
        ("siglip", CONFIG, {"text_config": {"projection_size": 7}}, "gives texts 7 dimensions"),
        ("colpali", CONFIG, {"vlm_config": {"model_type": "qwen2_vl"}}, "nothing of a PaliGemma"),
        ("clip", PROCESSOR, {"crop_size": 64}, "makes pictures of 64, and its tower takes 32"),
        ("siglip", PROCESSOR, {"do_resize": False}, "makes pictures of no one size"),
        ("clip", PROCESSOR, {"image_processor_type": "OwnProcessor"}, "'OwnProcessor'"),
        ("clip", PROCESSOR, {"image_std": [0, 0, 0]}, "finite numbers"),
        ("clip", PROCESSOR, {"resample": 77}, "cannot be built"),
        ("clip-saved", "sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, "processing_kwargs"),
        ("clip", PROCESSOR, None, "has no preprocessor_config.json"),
        ("clip", "model.safetensors", None, "has no safetensors weights"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    engine: InferenceEngine, tmp_path: Path, name: str, file: str, change: Any, said: str
) -> None:
    path = picture_checkpoints.write(name, tmp_path) / file
    if change is None:
        path.unlink()
    else:
        found = json.loads(path.read_text())
        for key, value in change.items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(found))
    with pytest.raises(LoadError, match=re.escape(said)) as caught:
        engine.load_embeddings(EmbedConfiguration(id=str(path.parent)))
    assert caught.value.hint


@pytest.mark.parity
def test_the_stored_references_are_what_transformers_gives_now(seen: References, tmp_path: Path) -> None:
    python = os.environ.get("MLXENGINE_PARITY_PYTHON", sys.executable)
    target = tmp_path / "pictures.safetensors"
    script = Path(__file__).with_name("make_picture_references.py")
    subprocess.run([python, str(script), str(target)], check=True, capture_output=True)
    again = load_file(target)
    assert again.keys() == seen.keys()
    for name, value in seen.items():
        assert np.abs(again[name] - value).max() < 1e-4, name
