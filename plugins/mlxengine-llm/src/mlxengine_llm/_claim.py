"""Whether this plugin serves a model, told from its card alone."""

from __future__ import annotations

import glob
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from mlxengine import Claim, Fit, ModelCard, Source
from mlxengine.errors import (
    BackendUnavailableError,
    IncompatibleWeightsError,
    LoadError,
    RemoteCodeRefusedError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.counts import config_problem
from mlxengine.toolkit.estimate import architectures, estimator
from mlxengine.toolkit.gguf_support import choose_file, gguf_problem, no_readable_file
from mlxengine.toolkit.media import describes_media, takes_media

from ._estimate import keeps
from .library import demanded, module_of, source

FILES = ("*.json", "model*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja")
_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_NOT_GENERATORS = ("ForSequenceClassification", "ForMaskedLM", "ForTokenClassification", "VisionModel")
_QUANTIZERS = {"bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq"}


def claim(card: ModelCard) -> Claim | None:
    """The plugin's offer for a model, or ``None`` for what is not a language model."""
    if is_gguf(card):
        return _claim_gguf(card)
    config = card.config
    if not isinstance(config.get("model_type"), str) or "model_index.json" in card.documents or _embeds(card):
        return None
    module, media, generates = module_of(config), takes_media(card), _claims_to_generate(config)
    wanted = card.configuration.plugin == "llm"
    if module is None and not (generates and (wanted or not (media or describes_media(config)))):
        return None
    if media and not (generates or wanted):
        return None
    return Claim(
        kind="llm",
        fit=_fit(config, module, media),
        files=(*FILES, "*.py") if card.configuration.trust_remote_code else FILES,
        capabilities=_capabilities(card),
        estimate=estimator(card, keeps(module)),
        problem=_problem(card, module),
        reason=_reason(module, media),
    )


def is_gguf(card: ModelCard) -> bool:
    """Whether the model is a GGUF file, or a repository or folder of nothing else."""
    return card.source is Source.GGUF or bool(card.gguf and not card.config)


def _claim_gguf(card: ModelCard) -> Claim | None:
    architecture = card.gguf.get("general.architecture")
    if not isinstance(architecture, str) or card.gguf.get("tokenizer.ggml.model") == "bert":
        return None
    names = card.names(".gguf")
    chosen = choose_file(names)
    problem = gguf_problem(card.gguf, card.tensors, chosen) if chosen else no_readable_file(names, card.id)
    only = evolve(card, files=tuple(file for file in card.files if file.path == chosen))
    return Claim(
        kind="llm",
        fit=Fit.NATIVE,
        files=(glob.escape(chosen),) if chosen else ("*.gguf",),
        capabilities=_capabilities(card),
        estimate=estimator(only if chosen else card),
        problem=problem,
        reason=f"a GGUF file of the architecture {architecture}",
    )


def _missing_here(card: ModelCard, module: str) -> LoadError | None:
    """What this machine or environment lacks for mlx-lm's module."""
    lacking = [name for name in demanded(module) if importlib.util.find_spec(name) is None]
    if lacking:
        return BackendUnavailableError(
            f"{card.id} needs {', '.join(lacking)} besides mlx-lm, which is not installed.",
            hint="Install the package that has it, or choose a model of another architecture.",
        )
    unpacked = "quantization" not in card.config
    ternary = unpacked and (card.quantization or {}).get("quant_method") == "bitnet"
    if (ternary or "bitlinear_layers" in source(module)) and sys.platform != "darwin":
        return BackendUnavailableError(
            f"{card.id} has ternary weights, for which mlx-lm has a kernel in Metal only.",
            hint="Run it on a Mac, or choose another quantization of the model.",
        )
    return None


def _fit(config: Mapping[str, Any], module: str | None, media: bool) -> Fit:
    if media or (module is None and not config.get("model_file")):  # whoever does more comes first
        return Fit.FALLBACK
    # A backbone without a head (Qwen3Model, Gemma3TextModel) is more often an encoder than not.
    names = architectures(config)
    headless = bool(names) and all(n.endswith("Model") and not n.endswith("LMHeadModel") for n in names)
    return Fit.PARTIAL if headless else Fit.NATIVE


def _reason(module: str | None, media: bool) -> str:
    if module is None:
        return "a language model that mlx-lm does not know"
    return "text only: pictures and sound are left out" if media else f"mlx-lm's {module}"


def _claims_to_generate(config: Mapping[str, Any]) -> bool:
    return any(name.endswith(_GENERATORS) for name in architectures(config))


def _embeds(card: ModelCard) -> bool:
    names = architectures(card.config)
    return "modules.json" in card.documents or any(name.endswith(_NOT_GENERATORS) for name in names)


def _capabilities(card: ModelCard) -> frozenset[str]:
    found = {"text"}
    settings = card.documents.get("tokenizer_config.json")
    inline = isinstance(settings, Mapping) and settings.get("chat_template")
    if inline or "chat_template.jinja" in card.names() or "tokenizer.chat_template" in card.gguf:
        found.add("chat")
    return frozenset(found)


def _problem(card: ModelCard, module: str | None) -> LoadError | None:
    config, name = card.config, card.id
    problem: LoadError | None = config_problem(name, config, card.tensors)
    if problem is not None:
        return problem
    custom = config.get("model_file")
    if custom and not card.configuration.trust_remote_code:
        return RemoteCodeRefusedError(
            f"{name} wants to run its own code ({custom}).",
            hint="Read that file first; then load with trust_remote_code=True if you trust it.",
        )
    if module is None and not custom:
        return UnsupportedArchitectureError(
            f"{name} has the architecture {config.get('model_type')!r}, which mlx-lm does not implement.",
            hint="Update mlx-lm, or choose a model of a supported architecture.",
        )
    if module is not None and (problem := _missing_here(card, module)) is not None:
        return problem
    method = (card.quantization or {}).get("quant_method")
    if "quantization" not in config and isinstance(method, str) and method not in _QUANTIZERS:
        return IncompatibleWeightsError(
            f"{name} is quantized with {method!r}, which mlx-lm cannot read.",
            hint="Choose the unquantized repository, or an MLX conversion of it.",
        )
    if card.files and not any(item.startswith("model") for item in card.names(".safetensors")):
        return IncompatibleWeightsError(
            f"{name} has no model*.safetensors file; found: {', '.join(card.names()[:8]) or 'nothing'}.",
            hint="Choose a repository with safetensors weights; pickled ones are never loaded.",
        )
    return None


__all__ = ["FILES", "claim", "is_gguf"]
