"""FLUX.2 klein where mflux is not installed; `make test-mflux` runs it where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import BackendUnavailableError
from mlxengine_diffusion.backends import mflux

sys.path.insert(0, str(Path(__file__).parent / "extras"))

import tiny_flux2 as f


def test_without_mflux_the_error_says_how_to_install_it(
    engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mflux, "missing", lambda: "mflux")
    folder = f.write(tmp_path / "model")
    problem = engine.explain(folder).claim.problem
    assert isinstance(problem, BackendUnavailableError)
    assert 'pip install --no-deps "mflux>=0.24,<0.25"' in (problem.hint or "")
    with pytest.raises(BackendUnavailableError):
        engine.load_images(folder)
