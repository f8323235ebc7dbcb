"""The trained tiny model, loaded once, and the plugin's hooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "parity")]

LANGUAGE = Path(__file__).parents[2] / "mlxengine-llm" / "tests"
sys.path.append(str(LANGUAGE))  # sameness.py: when two answers are the same

from vlm_harness import TINY, Plugin  # noqa: E402


@pytest.fixture(scope="session")
def plugin() -> Iterator[Plugin]:
    """The plugin's hooks, called as the engine calls them."""
    found = Plugin()
    yield found
    found.close()


@pytest.fixture(scope="session")
def tiny(plugin: Plugin) -> Any:
    """The trained SmolVLM of 4.6 million parameters."""
    return plugin.load(TINY)


@pytest.fixture
def fresh(tiny: Any) -> Any:
    """The same, with nothing remembered."""
    tiny.prefixes.clear()
    tiny.features.clear()
    return tiny


@pytest.fixture(scope="session")
def large_vision(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model's tokenizer and processor around random weights with proportions of real ones.

    Most of a real model's first-token time is its vision encoder and the picture's tokens; the trained
    model is too small to show that.
    """
    import json
    import shutil

    from random_checkpoint import write

    folder = tmp_path_factory.mktemp("large-vision")
    for item in TINY.iterdir():
        if item.suffix != ".safetensors":
            shutil.copy(item, folder / item.name)
    config = json.loads((TINY / "config.json").read_text())
    config["vision_config"] |= {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
    config["vision_config"] |= {"intermediate_size": 1536}
    return plugin.load(write(folder, config, _shapes_of(config)))


def _shapes_of(config: dict[str, Any]) -> dict[str, Any]:
    """Names and shapes of a SmolVLM's tensors, told from the trained model's."""
    from safetensors import safe_open

    vision, found = config["vision_config"], {}
    old, new = 192, vision["hidden_size"]
    with safe_open(TINY / "model.safetensors", "numpy") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    sizes = {old: new, 576: vision["intermediate_size"], 4 * old: 4 * new}
    for name, shape in shapes.items():
        if "vision_model" in name or "connector" in name:
            shape = [sizes.get(size, size) for size in shape]
        if "vision_model.encoder.layers.0." in name:
            for layer in range(vision["num_hidden_layers"]):
                found[name.replace("layers.0.", f"layers.{layer}.")] = shape
        elif "vision_model.encoder.layers." not in name:
            found[name] = shape
    return found


@pytest.fixture
def tiny_blind(plugin: Plugin) -> Any:
    """The trained model loaded for text alone."""
    return plugin.load(TINY, flags={"multi_modal": False})
