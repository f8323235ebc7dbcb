"""The compiled UNet, here on a CPU: the flag, the same pictures, few traces, nothing left behind."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from mlxengine import InferenceEngine
from mlxengine.errors import FeatureUnavailableError
from mlxengine_diffusion.backends._work import Job
from mlxengine_diffusion.sd.unet import UNet
from safetensors.numpy import save_file

JOB = Job(
    prompt="a red circle",
    negative=None,
    width=32,
    height=32,
    steps=2,
    guidance=3.0,
    seed=1,
    scheduler="euler",
)
_LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def traced_only() -> Iterator[None]:
    """mlx traces and simplifies, but fuses nothing: on a CPU, a fused kernel costs seconds of g++.

    mlx has this mode in C++ alone.
    """
    import mlx

    library = next(Path(mlx.__path__[0]).glob("lib/libmlx.*"))
    set_mode = ctypes.CDLL(str(library))._ZN3mlx4core16set_compile_modeENS0_11CompileModeE
    no_fuse, enabled = 2, 3
    set_mode(no_fuse)
    yield
    set_mode(enabled)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the latents for which the UNet's Python code ran."""
    found: list[tuple[int, ...]] = []
    call = UNet.predicted

    def counted(self: UNet, x: Any, *rest: Any) -> Any:
        found.append(tuple(x.shape))
        return call(self, x, *rest)

    monkeypatch.setattr(UNet, "predicted", counted)
    return found


@pytest.fixture
def pipeline(load_pipeline: Callable[..., Any], tiny_folder: Path) -> Any:
    return load_pipeline(tiny_folder, compile="on")


def compiled(pipeline: Any, on: bool) -> Any:
    pipeline.traits = evolve(pipeline.traits, compiled=on)
    return pipeline


def latents(pipeline: Any, **changes: Any) -> np.ndarray[Any, Any]:
    *_, last = pipeline.denoise(evolve(JOB, **changes))
    return np.array(last.latents)


def adapter(folder: Path) -> tuple[tuple[Path, float], ...]:
    random = np.random.RandomState(0)
    tensors = {f"{_LAYER}.lora_A.weight": (2, 96), f"{_LAYER}.lora_B.weight": (96, 2)}
    path = folder / "adapter.safetensors"
    save_file({name: random.randn(*shape).astype(np.float32) for name, shape in tensors.items()}, path)
    return ((path, 1.0),)


@pytest.mark.usefixtures("traced_only")
def test_the_compiled_unet_makes_the_same_picture(pipeline: Any, tmp_path: Path) -> None:
    start = np.full((32, 32, 3), 128, np.uint8)
    for changes in (
        {},
        {"guidance": 1.0},
        {"init": start, "strength": 0.5},
        {"low_memory": True},
        {"lora": adapter(tmp_path)},
    ):
        ours = latents(compiled(pipeline, True), **changes)
        plain = latents(compiled(pipeline, False), **changes)
        assert np.abs(ours - plain).max() <= 1e-4, changes
    adapted = latents(pipeline, lora=adapter(tmp_path))
    assert np.abs(adapted - latents(pipeline)).max() > 1e-2


@pytest.mark.feature("diffusion.compile")
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(("flag", "wanted"), [("on", True), ("off", False), ("auto", None)])
def test_the_flag_decides_whether_the_unet_is_compiled(
    shared_engine: InferenceEngine,
    tiny_folder: Path,
    traces: list[tuple[int, ...]],
    flag: str,
    wanted: bool | None,
) -> None:
    import mlx.core as mx

    wanted = mx.metal.is_available() if wanted is None else wanted
    with shared_engine.load_images(tiny_folder, features={"diffusion.compile": flag}) as model:
        assert model.info["compiled"] is wanted
        model.image("a red circle", size=(32, 32), steps=3, seed=1, guidance=3.0)
    assert len(traces) == (1 if wanted else 3)


def test_warming_up_makes_one_step_of_a_picture_of_the_usual_size(
    shared_engine: InferenceEngine, tiny_folder: Path, traces: list[tuple[int, ...]]
) -> None:
    with shared_engine.load_images(tiny_folder, warm_up=True):
        assert traces == [(2, 16, 16, 4)]


def test_to_compile_on_a_cpu_without_a_compiler_is_refused_when_it_is_loaded(
    load_pipeline: Callable[..., Any], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    if mx.default_device().type != mx.DeviceType.cpu:
        return  # a GPU's kernels need none
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FeatureUnavailableError, match=r"needs g\+\+"):
        load_pipeline(tiny_folder, compile="on")


@pytest.mark.slow
def test_fused_kernels_make_the_same_picture(pipeline: Any) -> None:
    ours = latents(compiled(pipeline, True))
    assert np.abs(ours - latents(compiled(pipeline, False))).max() <= 1e-4


@pytest.mark.usefixtures("traced_only")
def test_each_size_is_traced_once_and_only_the_last_few_are_kept(
    pipeline: Any, traces: list[tuple[int, ...]]
) -> None:
    latents(pipeline)
    latents(pipeline, steps=4, seed=2)
    assert traces == [(2, 8, 8, 4)]
    sizes = [(32, 32 + 4 * number) for number in range(1, 5)]
    for height, width in sizes:
        latents(pipeline, width=width, height=height, steps=1)
    assert len(traces) == 5
    latents(pipeline, width=48, steps=1)  # the last one: still there
    assert len(traces) == 5
    latents(pipeline, steps=1)  # the first of five: forgotten
    assert len(traces) == 6


@pytest.mark.usefixtures("traced_only")
def test_what_was_compiled_is_freed_with_the_network_and_after_a_cancel(
    load_pipeline: Callable[..., Any], tiny_folder: Path
) -> None:
    import mlx.core as mx

    gc.collect()
    base = mx.get_active_memory()
    pipeline = load_pipeline(tiny_folder, compile="on")
    latents(pipeline)
    held = mx.get_active_memory()
    assert held - base > 10_000_000
    walk = pipeline.denoise(evolve(JOB, steps=9, seed=5))
    while next(walk) is None:
        pass
    walk.close()
    del walk
    assert mx.get_active_memory() <= held + 64 * 1024
    latents(pipeline, low_memory=True)
    low = mx.get_active_memory()
    assert low - base < 1_000_000
    pipeline.close()
    assert mx.get_active_memory() <= low
