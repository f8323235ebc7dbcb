"""Wan's parts and whole videos against diffusers on torch: same weights, same noise, stored outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))

import tiny_wan as w

TOLERANCE = 5e-5
PIXELS = 2


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = load_file(w.DATA / "wan.safetensors")
    return found


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A tiny Wan by its family, loaded once."""
    from mlxengine_video.wan import Wan

    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            folder = w.write(family, tmp_path_factory.mktemp("wan") / family)
            made[family] = Wan.load(folder, dtype="float32")
        return made[family]

    return get


def near(ours: Any, theirs: np.ndarray[Any, Any]) -> None:
    found = np.array(ours)
    assert found.shape == theirs.shape
    assert np.abs(found - theirs).max() <= TOLERANCE
    assert np.abs(theirs).max() > 100 * TOLERANCE


@pytest.mark.parametrize(("name", "text"), [("prompt", w.PROMPT), ("long", w.LONG)])
def test_prompts_are_read_as_by_transformers(
    wan: Callable[[str], Any], reference: dict[str, Any], name: str, text: str
) -> None:
    told = wan("t2v").prompts(text, None)
    near(told.prompt, reference[f"text.{name}"])
    assert (told.tokens, told.truncated, told.negative.shape) == (len(told.prompt), "", (1, 16))


def test_distances_between_tokens_are_in_the_buckets_of_transformers(reference: dict[str, Any]) -> None:
    import mlx.core as mx
    from mlxengine_video.wan.loading import buckets

    assert np.array_equal(np.array(buckets(32, mx.arange(-511, 512))), reference["text.buckets"])


def test_buckets_do_not_hang_on_how_a_device_takes_logarithms(
    wan: Callable[[str], Any], reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    whole = mx.log
    monkeypatch.setattr(mx, "log", lambda value: whole(value) * (1 - 1e-6))
    near(wan("t2v").prompts(w.LONG, None).prompt, reference["text.long"])


@pytest.mark.parametrize("family", ["t2v", "ti2v", "i2v"])
def test_the_transformer_is_that_of_diffusers(
    wan: Callable[[str], Any], reference: dict[str, Any], family: str
) -> None:
    import mlx.core as mx

    shown = {name: mx.array(value) for name, value in w.shown(family).items()}
    with wan(family)._parts.use("transformer") as network:
        text = network.embed_text([shown["text"]])
        near(network([shown["latents"]], mx.array([w.TIME]), text, 12)[0], reference[f"{family}.transformer"])
        if family == "ti2v":
            each = mx.array([[0] * 6 + [w.TIME] * 6])
            near(network([shown["latents"]], each, text, 12)[0], reference["ti2v.transformer.each"])


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A family's autoencoder, encoder included; its latents are not normalised."""

    def make(family: str) -> Any:
        from attrs import evolve
        from mlxengine_video.wan.autoencoder import Autoencoder
        from mlxengine_video.wan.loading import vae_networks
        from mlxengine_video.wan.shape import read_documents

        folder = w.write(family, tmp_path_factory.mktemp("vae") / family)
        known = read_documents(folder)
        known = evolve(known, shape=evolve(known.shape, takes_picture=True))
        plain = {"latents_mean": [0.0] * known.vae["z_dim"], "latents_std": [1.0] * known.vae["z_dim"]}
        return Autoencoder(vae_networks(folder, known), {**known.vae, **plain})

    return make


@pytest.mark.parametrize("family", ["t2v", "ti2v"])
def test_latents_are_decoded_piece_by_piece_and_frames_encoded_as_by_diffusers(
    autoencoder: Callable[[str], Any], reference: dict[str, Any], family: str
) -> None:
    import mlx.core as mx

    made, shown = autoencoder(family), w.shown(family)
    pieces = list(made.decode(mx.array(shown["hidden"])))
    assert [len(piece) for piece in pieces] == [1, 4, 4]
    near(np.concatenate([np.array(piece) for piece in pieces]), reference[f"{family}.decoded"])
    frames = mx.array(shown["frames"].transpose(1, 2, 3, 0))
    near(made.encode(frames), reference[f"{family}.encoded"])
    near(made.encode(frames[:1]), reference[f"{family}.encoded.one"])


def settings(shift: float, order: int = 2, uncorrected: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "flow_shift": shift,
        "solver_order": order,
        "disable_corrector": uncorrected,
    }


@pytest.mark.parametrize("number", range(len(w.SOLVED)))
def test_the_solver_goes_the_way_of_diffusers(reference: dict[str, Any], number: int) -> None:
    import mlx.core as mx
    from mlxengine_video.wan.sampler import Solver

    shift, order, steps, uncorrected = w.SOLVED[number]
    solver = Solver(settings(shift, order, uncorrected), steps)
    latents, way = mx.array(w.random(6, 1, 12)), []
    for time in solver.told:
        latents = solver.next(mx.sin(latents * 2 + time / 300) + 0.3 * latents, latents)
        way.append(np.array(latents[0]))
    near(np.stack(way), reference[f"solver.{number}"])


@pytest.mark.parametrize("shift", w.SHIFTS)
def test_the_transformer_is_told_the_timesteps_of_diffusers(reference: dict[str, Any], shift: float) -> None:
    from mlxengine_video.wan.sampler import levels

    told = np.concatenate([levels(settings(shift), steps)[1] for steps in range(1, 61)])
    assert np.array_equal(told, reference[f"told.{shift}"])


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("t2v", "plain"),
        ("t2v", "guided"),
        ("ti2v", "plain"),
        ("ti2v", "guided"),
        ("ti2v", "picture"),
        ("two", "plain"),
        ("two", "guided"),
        ("i2v", "picture"),
    ],
)
def test_the_video_is_that_of_diffusers(
    wan: Callable[[str], Any], reference: dict[str, Any], family: str, name: str
) -> None:
    import mlx.core as mx

    model = wan(family)
    steps = model.denoise(
        model.prompts(w.PROMPT, w.NEGATIVE),
        size=w.SIZE[family],
        frames=w.FRAMES,
        steps=w.STEPS,
        guidance=1.0 if name == "plain" else w.GUIDANCE,
        seed=0,
        picture=w.picture(family) if name == "picture" else None,
        noise=mx.array(w.noise(family)),
    )
    *_, latents = steps
    frames = np.stack(list(model.decode(latents)))
    theirs = reference[f"{family}.{name}"]
    assert frames.shape == theirs.shape
    assert np.abs(frames.astype(int) - theirs).max() <= PIXELS


def test_guidance_pictures_and_a_second_transformer_change_the_references(reference: dict[str, Any]) -> None:
    pairs = [("t2v.plain", "t2v.guided"), ("ti2v.guided", "ti2v.picture"), ("t2v.plain", "two.plain")]
    for one, other in (*pairs, ("two.guided", "i2v.picture")):
        assert np.abs(reference[one].astype(int) - reference[other]).max() > 10 * PIXELS, (one, other)


@pytest.mark.parity
def test_torch_still_computes_the_stored_references(tmp_path: Path, reference: dict[str, Any]) -> None:
    python = os.environ.get("MLXENGINE_PARITY_PYTHON", sys.executable)
    script = Path(__file__).parent / "extras" / "make_wan_reference.py"
    subprocess.run([python, script, tmp_path], check=True)
    assert json.loads((tmp_path / "wan.shapes.json").read_text()) == w.shapes()
    found = load_file(tmp_path / "wan.safetensors")
    assert found.keys() == reference.keys()
    for key, value in reference.items():
        tolerance = 0 if key.startswith("told") else 1 if value.dtype == np.uint8 else 1e-5
        assert np.abs(found[key].astype(np.float64) - value).max() <= tolerance, key
