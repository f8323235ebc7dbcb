"""Write ``families.json``: what transformers' own classes say of each model type that mlx serves.

For every model type of the installed mlx-lm and mlx-vlm that transformers knows too: the class that a
checkpoint names, its task, the sections of its configuration, and how its tensors' names begin (of a model
of few layers on torch's meta device). Run in an environment with torch::

    python tests/families/make_families.py
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import torch
import transformers
from model_types import model_types
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

_TASKS = {
    "vlm": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"),
    "llm": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "other": ("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES", "MODEL_MAPPING_NAMES"),
}
_COUNTS = (
    "num_hidden_layers",
    "depth",
    "num_layers",
    "n_layers",
    "n_layer",
    "encoder_layers",
    "decoder_layers",
)
_LISTS = ("layer_types", "layers_block_type", "mlp_layer_types")
_ENCODERS = ("bert", "modernbert", "xlm-roberta")  # each has a class for causal text that nobody uses


def _class(kind: str) -> tuple[str, str] | None:
    for task, tables in _TASKS.items():
        if kind in _ENCODERS and task == "llm":
            continue
        for table in tables:
            names = dict(getattr(modeling_auto, table, {}))
            if found := names.get(kind):
                name = found if isinstance(found, str) else found[0]
                if task == "vlm" and not name.endswith(("ForConditionalGeneration", "ForCausalLM")):
                    return "other", name
                if task != "vlm" or not name.endswith("ForCausalLM"):
                    return task, name
    return None


def _default(kind: str) -> Any:
    """A configuration of the defaults, with encoders where the family may have them."""
    made = CONFIG_MAPPING[kind]
    parts = [name for name in ("vision_config", "audio_config") if name in made.sub_configs]
    plain = made()
    return made(**{name: {} for name in parts if getattr(plain, name, None) is None})


def _shrink(config: Any) -> None:
    """Leave two layers, where a configuration lets itself be changed."""
    for name in _COUNTS:
        if isinstance(found := getattr(config, name, None), int) and found > 2:
            setattr(config, name, 2)
    for name in _LISTS:
        if isinstance(found := getattr(config, name, None), list) and len(found) > 2:
            setattr(config, name, [found[0], found[-1]])
    for inner in vars(config).values():
        if isinstance(inner, transformers.PreTrainedConfig):
            _shrink(inner)


def _sections(config: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and depth < 2:
            found[key] = _sections(value, depth + 1) or {"model_type": key}
        elif (key in ("model_type", "is_encoder_decoder") and value) or (
            key.endswith(("token_id", "token_index")) and isinstance(value, int)
        ):
            found[key] = value
    return found


def _heads(name: str, config: Any) -> list[str]:
    """How tensors' names begin; empty where the default configuration cannot be built."""
    signal.alarm(30)
    try:
        _shrink(config)
        with torch.device("meta"):
            state = getattr(transformers, name)(config).state_dict()
    except Exception:
        return []
    finally:
        signal.alarm(0)
    return sorted({re.match(r"[^.]+(\.[^.0-9]+){0,2}", item).group() for item in state})  # type: ignore[union-attr]


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = {}
    for kind in sorted(model_types() & CONFIG_MAPPING_NAMES.keys()):
        named = _class(kind)
        if named is not None:
            found[kind] = {
                "task": named[0],
                "config": {**_sections(_default(kind).to_dict()), "architectures": [named[1]]},
                "tensors": _heads(named[1], _default(kind)),
            }
            found[kind]["config"]["model_type"] = kind
    lines = ",\n".join(f"{json.dumps(kind)}: {json.dumps(entry)}" for kind, entry in found.items())
    (Path(__file__).parent / "families.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
