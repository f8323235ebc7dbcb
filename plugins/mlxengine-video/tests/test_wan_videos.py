"""How a loaded Wan is used: step by step, frame by frame, and what is refused before anything is computed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine.errors import InvalidParameterError

sys.path.insert(0, str(Path(__file__).parent))

import tiny_wan as w

USUAL: dict[str, Any] = {"size": (48, 32), "frames": 5, "steps": 2, "guidance": 4.0, "seed": 1}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A tiny Wan by its family, loaded once."""
    from mlxengine_video.wan import Wan

    made: dict[tuple[str, str], Any] = {}
    root = tmp_path_factory.mktemp("wan")

    def get(family: str, dtype: str = "float32") -> Any:
        if (family, dtype) not in made:
            folder = root / family
            if not folder.exists():
                w.write(family, folder)
            made[family, dtype] = Wan.load(folder, dtype=dtype)
        return made[family, dtype]

    return get


def latents(model: Any, **changes: Any) -> list[Any]:
    told = model.prompts(w.PROMPT, w.NEGATIVE)
    return [np.array(item) for item in model.denoise(told, **{**USUAL, **changes})]


def test_each_step_gives_latents_and_a_seed_gives_the_same_again(wan: Callable[..., Any]) -> None:
    import mlx.core as mx

    model = wan("t2v")
    one, same, other = latents(model), latents(model), latents(model, seed=2)
    assert [item.shape for item in one] == [(4, 2, 4, 6)] * 2
    assert not np.array_equal(one[0], one[1])
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[-1], other[-1])
    noise = mx.random.normal((4, 2, 4, 6), key=mx.random.key(1))
    assert np.array_equal(latents(model, seed=9, noise=noise)[-1], one[-1])


def test_a_single_frame_can_be_made(wan: Callable[..., Any]) -> None:
    import mlx.core as mx

    for family, size in (("t2v", (48, 32)), ("ti2v", (64, 32))):
        model = wan(family)
        found = list(model.decode(mx.array(latents(model, frames=1, size=size)[-1])))
        assert [(item.shape, item.dtype) for item in found] == [((32, size[0], 3), np.uint8)]


def test_frames_come_out_before_the_rest_is_decoded(
    wan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlxengine_video.wan.autoencoder import Autoencoder

    places, whole = [], Autoencoder._place
    monkeypatch.setattr(
        Autoencoder, "_place", lambda *given, **more: places.append(1) or whole(*given, **more)
    )
    frames = wan("t2v").decode(mx.array(w.random(1, 4, 3, 2, 2)))
    assert not places
    for count, known in ((1, 1), (4, 2), (4, 3)):
        for _ in range(count):
            next(frames)
            assert len(places) == known
    assert next(frames, None) is None


@pytest.mark.parametrize("family", ["t2v", "ti2v"])
def test_decoding_a_longer_video_takes_no_more_memory(wan: Callable[..., Any], family: str) -> None:
    import mlx.core as mx

    model, channels = wan(family), wan(family).shape.channels

    def peak(places: int) -> int:
        hidden = mx.array(w.random(1, channels, places, 4, 4))
        mx.eval(hidden)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        for _ in model.decode(hidden):
            pass
        return int(mx.get_peak_memory() - before)

    peak(2)
    assert 0 < peak(12) < 1.2 * peak(4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["t2v", "ti2v"])
def test_half_precision_makes_nearly_the_same_video(wan: Callable[..., Any], family: str, dtype: str) -> None:
    changes: dict[str, Any] = {"size": w.SIZE[family]}
    if family == "ti2v":
        changes["picture"] = w.picture(family)
    exact, half = latents(wan(family), **changes)[-1], latents(wan(family, dtype), **changes)[-1]
    assert half.dtype == np.float32
    assert np.abs(exact - half).max() < 0.05 * np.abs(exact).max()


def test_the_parts_that_lose_by_half_precision_are_kept_from_it(wan: Callable[..., Any]) -> None:
    from mlx.utils import tree_flatten

    model, found = wan("ti2v", "bfloat16"), {}
    for part in model.shape.parts:
        with model._parts.use(part) as network:
            found |= {
                f"{part}.{name}": str(value.dtype) for name, value in tree_flatten(network.parameters())
            }
    exact = {name.split(".", 1)[1] for name, dtype in found.items() if dtype == "mlx.core.float32"}
    assert {
        "blocks.0.modulation",
        "head.modulation",
        "time_embedding_0.weight",
        "blocks.1.norm3.bias",
    } <= exact
    assert {"freqs", "norm.weight", "blocks.1.norm2.weight", "decoder.conv1.weight"} <= exact
    half = ("transformer.blocks.0.self_attn.norm_q.weight", "transformer.time_projection.weight")
    for name in (*half, "transformer.head.head.weight", "text_encoder.blocks.0.ffn.fc1.weight"):
        assert found[name] == "mlx.core.bfloat16", name


def test_positions_are_told_exactly_where_weights_are_half_precise(
    wan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlx_video.models.wan.model import WanModel

    whole, told = WanModel.__call__, []

    def call(*given: Any, rope_cos_sin: Any, **more: Any) -> Any:
        told.extend(rope_cos_sin)
        return whole(*given, rope_cos_sin=rope_cos_sin, **more)

    monkeypatch.setattr(WanModel, "__call__", call)
    latents(wan("t2v", "bfloat16"))
    assert told
    assert {item.dtype for item in told} == {mx.float32}


@pytest.mark.parametrize("family", ["two", "i2v"])
def test_networks_that_are_not_kept_make_the_same_video_and_are_freed(
    wan: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    import mlx.core as mx
    from mlxengine_video.wan import Wan

    changes: dict[str, Any] = {"steps": 4}
    if family == "i2v":
        changes["picture"] = w.picture("i2v")
    kept = wan(family)
    model = Wan.load(w.write(family, tmp_path / "tiny"), dtype="float32", keep=False)
    assert list(model.warm()) == []
    whole, ours = latents(kept, **changes), latents(model, **changes)
    assert np.array_equal(whole, ours)
    frames = model.decode(mx.array(ours[-1]))
    one = next(frames)
    assert model._parts._built.keys() == {"vae"}
    assert np.array_equal(one, next(kept.decode(mx.array(ours[-1]))))
    frames.close()
    steps = model.denoise(model.prompts("a", None), **{**USUAL, **changes})
    held = []
    for _ in steps:
        held.append(set(model._parts._built))
    assert held == [{"transformer"}, {"transformer"}, {"transformer_2"}, {"transformer_2"}]
    assert not model._parts._built


def test_blocks_that_wait_as_on_a_gpu_make_the_same_video(
    wan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlxengine.toolkit import launching
    from mlxengine_video.wan import Wan

    usual = latents(wan("t2v"))
    with monkeypatch.context() as patch:
        patch.setattr(launching, "on_gpu", lambda: True)
        model = Wan.load(w.write("t2v", tmp_path / "x"), dtype="float32")
    launched: list[Any] = []
    launch = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda made: launched.append(1) or launch(made))
    assert all(np.array_equal(a, b) for a, b in zip(latents(model), usual, strict=True))
    assert len(launched) >= 2 * USUAL["steps"]


def test_a_video_that_is_given_up_gives_its_network_back(tmp_path: Path) -> None:
    from mlxengine_video.wan import Wan

    model = Wan.load(w.write("t2v", tmp_path / "tiny"), dtype="float32", keep=False)
    told = model.prompts("a", None)
    one, other = model.denoise(told, **USUAL), model.denoise(told, **{**USUAL, "seed": 2})
    next(one), next(other)
    one.close()
    assert model._parts._built.keys() == {"transformer"}
    other.close()
    assert not model._parts._built


def test_with_a_picture_the_first_frame_is_it_from_the_first_step_on(wan: Callable[..., Any]) -> None:
    found = latents(wan("ti2v"), size=w.SIZE["ti2v"], picture=w.picture("ti2v"))
    assert np.array_equal(found[0][:, 0], found[1][:, 0])
    assert not np.array_equal(found[0][:, 1], found[1][:, 1])


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("t2v", {"size": (50, 32)}, "multiples of 16"),
        ("t2v", {"frames": 6}, "Use frames=5"),
        ("t2v", {"steps": 0}, "steps=0"),
        ("t2v", {"picture": w.picture("t2v")}, "takes no picture"),
        ("i2v", {}, "videos of a picture"),
        ("i2v", {"picture": w.picture("ti2v")}, "Scale and cut"),
        ("i2v", {"picture": w.picture("i2v").astype(np.float32)}, "of float32"),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_first_step(
    wan: Callable[..., Any], family: str, changes: dict[str, Any], match: str
) -> None:
    model = wan(family)
    told = model.prompts("a", None)
    with pytest.raises(InvalidParameterError, match=match):
        model.denoise(told, **{**USUAL, **changes})


def test_what_is_too_long_for_the_text_encoder_is_cut_and_said(wan: Callable[..., Any]) -> None:
    told = wan("t2v").prompts("a" * 511 + " red", None)
    assert (told.tokens, told.prompt.shape, told.truncated) == (512, (512, 16), "r e d")
    assert wan("t2v").prompts("a" * 511, None).truncated == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  a\n\tred   circle ", "a red circle"),
        ("静态，细节", "静态,细节"),
        ("<b> it&amp;#39;s", "<b> it's"),
        ("schÃ¶n", "schön"),
    ],
)
def test_prompts_are_mended_as_in_training(text: str, found: str) -> None:
    from mlxengine_video.wan.text import cleaned

    assert cleaned(text) == found


def test_warming_reads_the_weights_of_every_network(
    wan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxengine.toolkit import loading

    monkeypatch.setattr(loading, "_SLICE", 1)
    # The library's rotary table is a parameter of each transformer.
    stored = sum(len(w.tensors("two", part)) for part in w.parts("two"))
    unread = [name for name in w.tensors("two", "vae") if name.startswith(("encoder.", "quant_conv."))]
    assert len(list(wan("two").warm())) == stored + 2 - len(unread)
