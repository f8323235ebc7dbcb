"""A model for the plugins in ``planted``, and how one of them is planted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlxengine import TextRequest
from mlxengine.errors import InvalidParameterError
from mlxengine.testing import Example, Specimen

sys.path.append(str(Path(__file__).parent / "planted"))
import careless
import planted
from planted import CountRequest


@pytest.fixture
def specimen(tmp_path: Path) -> Specimen:
    folder = tmp_path / "counter"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "count"}))
    words = ["one ", "two ", "three ", "four ", "five "]
    (folder / "words.json").write_text(json.dumps(words, indent=8))
    return Specimen(
        path=folder,
        examples=[
            Example(request=CountRequest(upto=3), text="one two three ", shows={"words"}),
            Example(request=CountRequest(upto=5, start=2)),
            Example(request=TextRequest(prompt="aloud"), text="aloud"),
        ],
        refused=[(CountRequest(upto=9), InvalidParameterError)],
    )


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a fresh plugin with a fault, and gives its entry point's value."""

    def make(fault: str) -> str:
        if ":" in fault:
            return fault
        module = planted if hasattr(planted, fault) else careless
        monkeypatch.setattr(module, "PLANTED", getattr(module, fault)(), raising=False)
        monkeypatch.setenv("PLANTED", fault)
        return f"{module.__name__}:PLANTED"

    return make
