"""What a plugin's metadata says of versions is heeded, and what is turned off is not imported."""

from __future__ import annotations

from pathlib import Path

import mlxengine
import pytest
from mlxengine import InferenceEngine
from mlxengine._engine import installed
from mlxengine.errors import NoPluginForModelError

HOOKS = """
from mlxengine import hookimpl, Claim, Fit, Loaded, Finished
@hookimpl
def claim_model(card):
    return Claim(kind="x", fit=Fit.NATIVE, uses_mlx=False) if card.architecture == "mine" else None
@hookimpl
def load_model(card, context):
    return Loaded(model=1)
@hookimpl
def generate(model, request, context):
    return iter([Finished()])
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, *requires: str) -> None:
    """Put a plugin `mine` where Python finds it, as the distribution `mine-plugin`."""
    info = folder / "mine_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    lines = "".join(f"Requires-Dist: {item}\n" for item in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mine-plugin\nVersion: 1.0\n{lines}")
    (info / "entry_points.txt").write_text("[mlxengine]\nmine = mine_plugin\n")
    (folder / "mine_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mine"}')
    return folder


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("", True),
        (">=0.1,<0.2", True),
        (" (>=0.1)", True),
        ("[testing]>=0.1", True),
        ("~=0.1.0", True),
        ("==0.1.*", True),
        ("!=0.1.0", False),
        (">=9", False),
        ("<0.1", False),
        ("<=0.0.9", False),
        (">0.1", False),
        ("==0.2.*", False),
        ("~=0.0.9", False),
        (">=9; extra == 'new'", True),
    ],
)
def test_a_plugin_for_another_version_is_set_aside_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, wanted: str, fits: bool
) -> None:
    monkeypatch.setattr(installed, "__version__", "0.1.0")
    code = HOOKS if fits else "raise AssertionError('imported')"
    install(tmp_path / "site", monkeypatch, code, f"mlxengine{wanted}")
    with InferenceEngine() as engine:
        [record] = [item for item in engine.plugins if item.name == "mine"]
        assert (record.error is None) == fits
        if fits:
            assert engine.explain(model).record is record
        else:
            assert f"needs mlxengine{wanted}, and this is mlxengine {mlxengine.__version__}" in str(
                record.error
            )


def test_a_plugin_that_is_turned_off_is_not_imported_and_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    install(tmp_path / "site", monkeypatch, "raise AssertionError('imported')")
    monkeypatch.setenv("MLXENGINE_PLUGINS", "-mine")
    with InferenceEngine() as engine:
        [record] = [item for item in engine.plugins if item.name == "mine"]
        assert (record.off, record.error) == (True, None)
        for plugin in (None, "mine"):
            with pytest.raises(NoPluginForModelError, match=r"Turned off: 'mine' \(mine-plugin\)"):
                engine.load(model, plugin=plugin)


def test_whether_a_distribution_needs_another_is_read_through_what_it_requires() -> None:
    assert installed.needs("mlxengine-llm", "mlx")
    assert installed.needs("mlxengine-markov", "attrs")
    assert not installed.needs("mlxengine-markov", "mlx")
    assert not installed.needs("no-such-distribution", "mlx")
