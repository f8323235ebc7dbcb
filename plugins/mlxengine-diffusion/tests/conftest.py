"""The plugin's hooks called as the engine calls them, on folders, without a hub."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxengine import InferenceEngine, LoadContext
from mlxengine.toolkit import blas

blas.load()

sys.path.insert(0, str(Path(__file__).parent))

TINY = Path(__file__).parents[3] / "tests" / "models" / "tiny-shapes-sd"


@pytest.fixture(scope="session", autouse=True)
def full_precision() -> Iterator[None]:
    """The references are of fp32, and so is what is compared with them, where a GPU would take halves."""
    import mlx.core as mx
    from mlxengine_diffusion.backends import _networks, sd

    by_itself = sd._dtype
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_networks, "usual_dtype", lambda: mx.float32)
        patch.setattr(sd, "_dtype", lambda wanted, *, on_cpu: by_itself(wanted, on_cpu=True))
        yield


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The trained tiny Stable Diffusion, as a folder."""
    return TINY


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    """An engine with the installed plugins."""
    with InferenceEngine() as made:
        yield made


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[InferenceEngine]:
    """One engine for all tests of a module."""
    with InferenceEngine() as made:
        yield made


@pytest.fixture(scope="module")
def load_pipeline(shared_engine: InferenceEngine) -> Callable[..., Any]:
    """A back end's pipeline from a folder: ``load_pipeline(folder, **flags)``."""
    from mlxengine.contract.features import Layer, Level
    from mlxengine_diffusion import plugin

    def load(folder: Path, **flags: object) -> Any:
        card = shared_engine.resolve(folder)
        values = {f"diffusion.{name}": value for name, value in flags.items()}
        context = LoadContext(
            path=folder,
            configuration=card.configuration,
            features=shared_engine.features.view(Layer(Level.LOAD, values)),
            device=shared_engine.device,
        )
        return plugin.load_model(card, context).model.pipeline

    return load
