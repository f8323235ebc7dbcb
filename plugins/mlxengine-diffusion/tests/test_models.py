"""The registry's picture models: defaults for each, and where license, steps and guidance were read."""

from __future__ import annotations

import subprocess
import sys

import attrs
from mlxengine.registry import ModelRegistry
from mlxengine_diffusion.models import MODELS, DiffusionConfiguration


def test_every_entry_has_a_size_and_its_defaults() -> None:
    assert len(MODELS) == len({item.id.casefold() for item in MODELS}) >= 11
    for item in MODELS:
        assert item.kind == "diffusion"
        assert item.parameters
        assert item.steps
        assert item.guidance is not None
        assert item.image_size is not None
        assert len(item.image_size) == 2
        assert all(side % 8 == 0 for side in item.image_size)


def test_licenses_have_a_source_and_most_defaults_too() -> None:
    registry = ModelRegistry(MODELS)
    for item in MODELS:
        assert item.license is None or registry.provenance(item.id, "license"), item.id
        for source in (item.provenance, *item.sources) if item.provenance else item.sources:
            assert source.source.startswith("https://")
            assert set(source.fields) <= set(attrs.fields_dict(DiffusionConfiguration))
    for name, least in {"license": 11, "guidance": 9, "steps": 6}.items():
        found = [item for item in MODELS if registry.provenance(item.id, name)]
        assert len(found) >= least, (name, len(found))


def test_no_commercial_use_is_not_hidden() -> None:
    registry = ModelRegistry(MODELS)
    for name in ("stabilityai/sdxl-turbo", "black-forest-labs/FLUX.1-dev"):
        assert {"nc", "non"} & set((registry.entry(name).configuration.license or "").split("-"))


def test_what_claims_a_model_imports_no_mlx() -> None:
    # every model of every kind is shown to the back ends, on machines too where mlx cannot be imported
    code = (
        "import sys\nfrom mlxengine_diffusion.backends import ORDER, backend\n"
        "for name in ORDER: backend(name)\nprint([name for name in sys.modules if name.startswith('mlx.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
