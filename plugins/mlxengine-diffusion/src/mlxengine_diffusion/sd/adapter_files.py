"""Files of adapters, in the key forms of diffusers, PEFT, kohya and XLabs: what they adapt, and how far.

Sources: Hu et al. 2021 (arXiv:2106.09685) for LoRA; Kalajdzievski 2023 (arXiv:2312.03732) for its
rank-stabilised scale; kohya's names are those of the original latent-diffusion code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field
from mlxengine.errors import IncompatibleWeightsError, ModelNotFoundError

from .adapters import Adapter
from .weights import read_tensors

DENOISER = "denoiser"
"""What a UNet and a transformer are both called here."""
# The longest first, where one begins another.
_PREFIXES = {
    **dict.fromkeys(("lora_unet_", "lora_transformer_", "lycoris__", "lycoris_"), DENOISER),
    **dict.fromkeys(("unet.", "transformer.", "diffusion_model."), DENOISER),
    **dict.fromkeys(("lora_te_", "lora_te1_", "text_encoder."), "text_encoder"),
    # T5 is FLUX.1's second text encoder, though its trainers give it the number it has in Stable Diffusion 3.
    **dict.fromkeys(("lora_te2_", "lora_te3_", "text_encoder_2."), "text_encoder_2"),
    "text_encoders.clip_l.transformer.": "text_encoder",
    **dict.fromkeys(
        ("text_encoders.clip_g.transformer.", "text_encoders.t5xxl.transformer."), "text_encoder_2"
    ),
}
_SUFFIX = re.compile(
    r"(?P<name>.+?)(?:"
    r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.default)?(?P<down>)\.weight"
    r"|\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.default)?(?P<up>)\.weight"
    r"|\.(?P<factor>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
    r"|\.(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?)"
    r"|(?P<alpha>)\.alpha)"
)
_PROCESSOR = re.compile(r"\.processor\.(to_\w+?)_lora\.(down|up)\.")
_XLABS = re.compile(r"(\.processor\.\w+_lora[12]?)\.(down|up)\.")
_OTHER_KINDS = ("oft_", "lora_mid", "diff")
_PEFT_CONFIG = "adapter_config.json"
# What else PEFT's configuration can say that changes what the matrices do, with what is implemented.
_PEFT_FIXED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA", "LOHA", "LOKR"),
    "bias": ("none",),
    "lora_bias": (False, None),
    "modules_to_save": (None,),
    "layer_replication": (None,),
    "megatron_config": (None,),
}
_PEFT_ALPHA = 8
_SHOWN = 5
MADE_FOR_ANOTHER = "It was made for another model: each family, and often each size, takes its own adapters."


@define
class AdapterFile:
    """A file of adapters: per network, adapters by the layer's name as the file writes it."""

    name: str
    networks: dict[str, dict[str, Adapter]] = field(factory=dict)


def read_all(wanted: Iterable[tuple[Path, float]], parts: Collection[str]) -> list[tuple[AdapterFile, float]]:
    """The files of a request, each with its strength, for a model that has these ``parts``.

    Raises:
        ModelNotFoundError, IncompatibleWeightsError: a file is none, or adapts a part that the model has not.
    """
    found = [(read_adapters(path), scale) for path, scale in wanted]
    for file, _ in found:
        if others := sorted(set(file.networks) - set(parts)):
            layers = [name for part in others for name in file.networks[part]]
            raise IncompatibleWeightsError(
                f"{file.name} adapts {', '.join(others)}, which the model does not have: {few(layers)}.",
                hint=MADE_FOR_ANOTHER,
            )
    return found


def read_adapters(path: Path) -> AdapterFile:
    """Read a ``.safetensors`` file, or the one in a folder.

    Raises:
        ModelNotFoundError: there is none, or more than one.
        IncompatibleWeightsError: it holds something else than LoRA layers.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelNotFoundError(
            f"{path} holds {len(files)} .safetensors files where one adapter is expected.",
            hint="Name the file itself.",
        )
    tensors = read_tensors(files)
    found = AdapterFile(name=path.name)
    strange = []
    for key, tensor in tensors.items():
        network, rest = _network(key)
        match = _SUFFIX.fullmatch(_XLABS.sub(r"\1.lora.\2.", _PROCESSOR.sub(r".\1.lora.\2.", rest)))
        if match is None:
            strange.append(key)
            continue
        adapter = found.networks.setdefault(network, {}).setdefault(match["name"], Adapter())
        if match["alpha"] is not None:
            adapter.alpha = float(np.array(tensor, dtype=np.float32))
        elif match["down"] is not None:
            adapter.down = tensor
        elif match["factor"] is not None:
            adapter.factors[match["factor"]] = tensor
        elif match["magnitude"] is not None:
            if match["magnitude"] == "dora_scale" and tensor.shape[0] == 1 and tensor.size > 1:
                strange.append(key)
            adapter.magnitude = tensor.flatten()
        else:
            adapter.up = tensor
    if strange:
        other = any(word in key for key in strange for word in _OTHER_KINDS)
        raise IncompatibleWeightsError(
            f"{path.name} is no adapter that is implemented: it has {few(strange)}.",
            hint="LoRA, LoHa, LoKr, and DoRA by outputs are." if other else None,
        )
    try:
        _read_alphas(files[0], found)
    except (re.error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise IncompatibleWeightsError(
            f"What {path.name} says about its alphas cannot be read: {error}.", hint="Save the adapter again."
        ) from error
    return found


def _network(key: str) -> tuple[str, str]:
    key = key.removeprefix("base_model.model.")
    for prefix, network in _PREFIXES.items():
        if key.startswith(prefix):
            return network, key.removeprefix(prefix)
    return ("text_encoder" if key.startswith("text_model.") else DENOISER), key


def _read_alphas(file: Path, found: AdapterFile) -> None:
    """PEFT's alphas, which stand beside the tensors: in its own file, or in the header as diffusers has them.

    Raises:
        IncompatibleWeightsError: PEFT's file says that the adapter is more than its matrices.
    """
    beside = file.parent / _PEFT_CONFIG
    if file.name == "adapter_model.safetensors" and beside.is_file():
        config = _object(beside.read_text(encoding="utf-8"))
        wrong = [
            f"{key}={config[key]!r}"
            for key, fixed in _PEFT_FIXED.items()
            if config.get(key, fixed[0]) not in fixed
        ]
        if wrong:
            raise IncompatibleWeightsError(
                f"{found.name} cannot be applied: its {_PEFT_CONFIG} has {', '.join(wrong)}.",
                hint="Save the adapter merged into a model, or without these.",
            )
        for layers in found.networks.values():
            _give_alphas(layers, config)
        return
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        metadata = json.loads(stream.read(size)).get("__metadata__") or {}  # mlx writes null
    values = _object(metadata.get("lora_adapter_metadata", ""))
    for network, layers in found.networks.items():
        prefix = re.compile(r"(unet|transformer)\." if network == DENOISER else rf"{network}\.")
        own = {prefix.sub("", key, count=1): value for key, value in values.items() if prefix.match(key)}
        if "lora_alpha" in own:
            _give_alphas(layers, own)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _give_alphas(layers: Mapping[str, Adapter], told: Mapping[str, Any]) -> None:
    patterns = told.get("alpha_pattern") or {}
    for layer, adapter in layers.items():
        if adapter.alpha is None:
            # A pattern is a name's end, as PEFT reads it, and may be a regular expression.
            own = [alpha for name, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", layer)]
            adapter.alpha = float(own[0] if own else told.get("lora_alpha", told.get("alpha", _PEFT_ALPHA)))
        if told.get("peft_type") == "LOKR":
            adapter.rank = int(told["r"])  # also where both factors are whole
        adapter.rank_stabilised = bool(told.get("use_rslora"))


def few(names: list[str]) -> str:
    """Some of the names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


__all__ = ["DENOISER", "MADE_FOR_ANOTHER", "AdapterFile", "few", "read_adapters", "read_all"]
