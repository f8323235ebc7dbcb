"""Models of flow matching, as far as no optional library is needed: noise levels, strict filling, offers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import BackendUnavailableError, IncompatibleWeightsError, UnsupportedArchitectureError
from mlxengine_diffusion.backends import mflux
from mlxengine_diffusion.backends._flow import Levels
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_flux1 as f1
import tiny_flux2 as f2
import tiny_kit as k
import tiny_qwen_edit as e
import tiny_qwen_image as q


@pytest.mark.parametrize("name", f1.LEVELS)
def test_noise_levels_are_those_of_diffusers(name: str) -> None:
    stored = json.loads((k.DATA / "levels.json").read_text())
    for steps, places in f1.WALKS:
        ours = Levels.read(f1.LEVELS[name]).sigmas(steps, places)
        assert np.allclose(ours, stored[f"{name}/{steps}/{places}"], atol=1e-6), (steps, places)


def test_a_single_step_goes_all_the_way() -> None:
    assert Levels.read(f1.LEVELS["stretched"]).sigmas(1, 64) == [1.0, 0.0]


@pytest.mark.parametrize(
    "changes",
    [{"use_karras_sigmas": True}, {"_class_name": "UniPCMultistepScheduler"}],
    ids=["karras", "unipc"],
)
def test_a_scheduler_that_is_not_implemented_is_refused_before_a_download(
    engine: InferenceEngine, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mflux, "missing", lambda: None)
    folder = q.write(tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    problem = engine.explain(folder).claim.problem
    assert isinstance(problem, UnsupportedArchitectureError)
    assert (next(iter(changes)) if True in changes.values() else "UniPC") in str(problem)


def small() -> Any:
    """A network with a layer of each kind."""
    import mlx.nn as nn

    made = nn.Module()
    made.linear = nn.Linear(4, 6)
    made.flat = nn.Conv2d(4, 6, 3)
    made.deep = nn.Conv3d(4, 6, (1, 3, 3))
    return made


def test_a_network_takes_the_geometry_of_another_and_every_tensor_of_it(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlxengine_diffusion.backends._networks import filled, renamed, resize

    network = small()
    resize(network, {4: 2, 6: 5})
    tensors = {
        "net.linear.weight": np.random.randn(5, 2).astype(np.float32),
        "net.linear.bias": np.ones(5, np.float32),
        "net.flat.weight": np.random.randn(5, 2, 3, 3).astype(np.float32),
        "net.flat.bias": np.ones(5, np.float32),
        "net.deep.weight": np.random.randn(5, 2, 1, 3, 3).astype(np.float32),
        "net.deep.bias": np.ones(5, np.float32),
    }
    file = tmp_path / "x.safetensors"

    def fill(found: dict[str, Any]) -> None:
        save_file(found, file)
        filled(network, "part", [file], renamed((r"^", "net.")), mx.float32, ignored="^other")

    fill({**tensors, "other.bias": np.ones(3, np.float32)})
    assert np.array_equal(np.array(network.deep.weight), tensors["net.deep.weight"].transpose(0, 2, 3, 4, 1))
    for wrong, words in (
        (
            {name: value for name, value in tensors.items() if "flat.bias" not in name},
            "missing (net.flat.bias)",
        ),
        ({**tensors, "net.more": np.ones(3, np.float32)}, "not known (net.more)"),
        ({**tensors, "net.deep.weight": np.ones((5, 2, 1, 3, 1), np.float32)}, "not (5, 2, 1, 3, 3)"),
    ):
        with pytest.raises(IncompatibleWeightsError) as caught:
            fill(wrong)
        assert words in str(caught.value)


MODELS: dict[str, Callable[[Path, Path], Path]] = {
    "FLUX.1": lambda folder, tiny: f1.write(folder, tiny / "tokenizer"),
    "Qwen-Image": lambda folder, tiny: q.write(folder),
    "Qwen-Image-Edit": lambda folder, tiny: e.write(folder),
}


@pytest.mark.parametrize("name", MODELS)
def test_without_mflux_the_error_says_how_to_install_it(
    engine: InferenceEngine, tmp_path: Path, tiny_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mflux, "missing", lambda: "mflux")
    folder = MODELS[name](tmp_path / "model", tiny_folder)
    problem = engine.explain(folder).claim.problem
    assert isinstance(problem, BackendUnavailableError)
    assert 'pip install --no-deps "mflux>=0.24,<0.25"' in (problem.hint or "")
    with pytest.raises(BackendUnavailableError):
        engine.load_images(folder)


def test_where_two_libraries_serve_a_model_the_caller_can_name_the_second(
    engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f2.write(tmp_path / "model")
    assert engine.explain(folder).claim.reason == "back end mlx_vlm of mlx_vlm, mflux"
    monkeypatch.setattr(mflux, "missing", lambda: "mflux")
    with pytest.raises(BackendUnavailableError, match="not installed"):
        engine.load_images(folder, features={"diffusion.backend": "mflux"})
