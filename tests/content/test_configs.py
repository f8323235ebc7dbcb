"""Whatever a configuration says, loading ends: with a model, or with a typed error, soon and small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlxengine import InferenceEngine
from mlxengine.errors import IncompatibleWeightsError

from .configs import KINDS, bases, campaign, counted, documents


def _faults(kind: str, folder: Path, seeds: range, record: Any) -> list[str]:
    base = bases(folder, (kind,))[kind]
    outcomes = campaign(kind, base, seeds)
    record(kind, counted(outcomes))
    assert len(outcomes) == len(seeds)
    return [f"{item.case}: {item.change} -> {item.how}" for item in outcomes if item.fault]


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_configurations_load_or_are_typed(
    kind: str, tmp_path: Path, record_property: Any
) -> None:
    assert _faults(kind, tmp_path, range(1000, 1012), record_property) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_three_hundred_damaged_configurations_load_or_are_typed(
    kind: str, tmp_path: Path, record_property: Any
) -> None:
    assert _faults(kind, tmp_path, range(300), record_property) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_million_million_layers_are_refused_before_anything_is_built(kind: str, tmp_path: Path) -> None:
    base = bases(tmp_path, (kind,))[kind]
    key = "layers_per_block" if kind == "diffusion" else "num_hidden_layers"
    path = next(path for path in documents(base) if key in path.read_text())
    config = json.loads(path.read_text())
    config.get("text_config", config)[key] = 10**12
    path.write_text(json.dumps(config))
    with InferenceEngine() as engine, pytest.raises(IncompatibleWeightsError, match=key):
        engine.load(str(base))
