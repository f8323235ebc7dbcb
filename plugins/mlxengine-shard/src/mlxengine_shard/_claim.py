"""Whether a model can be spread over ranks, told from its card: what would fail later is refused here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve
from mlxengine import Claim, Fit, MemoryEstimate, ModelCard
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    MLXEngineError,
    UnsupportedArchitectureError,
)
from mlxengine.toolkit.estimate import text_config
from mlxengine_llm import features as llm
from mlxengine_llm import plugin
from mlxengine_llm.library import module_of, source

from .features import RANKS, SPLIT, STEP_SECONDS

HONOURS = (
    llm.STREAMING,
    llm.BATCH,
    llm.MAX_BATCH,
    llm.PREEMPTION,
    llm.LOGPROBS,
    llm.PROMPT_CACHE,
    llm.PROMPT_CACHE_MB,
    llm.STALL_FACTOR,
    llm.TOOL_CALLING,
    llm.REASONING,
    llm.STRUCTURED_OUTPUT,
    llm.SPECIAL_TOKENS_IN_TEXT,
    llm.TOKENIZER,
)
"""The language plugin's flags that hold for a model that is spread over ranks."""

# What a rank gets an equal part of: more of them are divided by the networks of single families.
_DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size")
# Those whose answers were compared with one rank's (tests/test_families.py), by mlx-lm's modules.
TENSOR = frozenset({"glm4_moe", "gpt_oss", "llama", "ministral3", "qwen2", "qwen3", "qwen3_moe"})
PIPELINE = frozenset({"glm4_moe", "qwen2", "qwen3_moe"})


def claim(card: ModelCard) -> Claim | None:
    """The plugin's offer: only for a load that asks for ranks, or for this plugin.

    What the language plugin serves for want of a better one (a model that sees, say) is left to that one.
    """
    flags = dict(card.configuration.features)
    try:
        ranks = _number(flags.get(RANKS.name))
        split = SPLIT.coerce(flags.get(SPLIT.name, SPLIT.default))
        seconds = STEP_SECONDS.coerce(flags.get(STEP_SECONDS.name, STEP_SECONDS.default))
        if not seconds > 0:
            raise InvalidParameterError(f"{STEP_SECONDS.name}={seconds} must be a number above 0.")
    except InvalidParameterError as error:
        return _refused(card, error)
    asked = card.configuration.plugin == "shard"
    if ranks is None and not asked:
        return None
    whole = plugin.claim_model(card)
    if whole is None or (whole.fit is Fit.FALLBACK and not asked):
        return None
    problem: Exception | None = whole.problem
    if problem is None and ranks is not None:
        problem = _problem(card, ranks, split)
    return evolve(
        whole,
        fit=Fit.CHOSEN,
        estimate=whole.estimate and _estimate(card, whole.estimate, ranks or 1),
        problem=problem,
        reason=f"{whole.reason}, over {ranks or 'several'} ranks",
        honours=frozenset(flag.name for flag in HONOURS),
    )


def _number(value: object) -> int | None:
    found = RANKS.coerce(value)
    if found is not None and not (isinstance(found, int) and found > 1):
        raise InvalidParameterError(f"{RANKS.name}={found!r} must be an integer from 2.")
    return found


def _refused(card: ModelCard, error: MLXEngineError) -> Claim | None:
    whole = plugin.claim_model(card)
    return None if whole is None else evolve(whole, fit=Fit.CHOSEN, problem=error)


def _problem(card: ModelCard, ranks: int, split: str) -> MLXEngineError | None:
    """Why it cannot be spread over so many ranks."""
    config = text_config(card.config)
    module = module_of(card.config)
    name = card.id
    if not card.config or module is None or card.gguf:
        return UnsupportedArchitectureError(
            f"{name} is a GGUF file, which cannot be read in parts.",
            hint="Convert it with `mlxengine convert`, then load the folder.",
        )
    if card.configuration.adapter is not None:
        return FeatureUnavailableError(
            f"{name} is spread over {ranks} ranks, where adapters are not mirrored.",
            hint="Merge the adapter with `mlxengine fuse`, then load the result.",
        )
    if card.configuration.trust_remote_code and card.config.get("model_file"):
        return UnsupportedArchitectureError(f"{name} has code of its own, of which no rank knows a part.")
    able = TENSOR if split == "tensor" else PIPELINE
    if module not in able:
        has = f"def {'shard' if split == 'tensor' else 'pipeline'}" in source(module)
        why = "which nobody has compared with one rank yet" if has else "which mlx-lm cannot split this way"
        return UnsupportedArchitectureError(
            f"{name} has the architecture {module}, {why} (shard.split={split}).",
            hint=f"Those that can be split this way: {', '.join(sorted(able))}.",
        )
    if split == "pipeline":
        layers = config.get("num_hidden_layers")
        if isinstance(layers, int) and layers < ranks:
            return IncompatibleWeightsError(f"{name} has {layers} layers, too few for {ranks} ranks.")
        return None
    return _indivisible(card, config, ranks)


def _indivisible(card: ModelCard, config: Mapping[str, Any], ranks: int) -> MLXEngineError | None:
    sizes = {key: config[key] for key in _DIVIDED if isinstance(config.get(key), int)}
    sizes.setdefault("num_key_value_heads", sizes.get("num_attention_heads", 0))
    wrong = [f"{key}={size}" for key, size in sizes.items() if size % ranks]
    if not wrong:
        wrong = _between_groups(card, config, sizes, ranks)
    if not wrong:
        return None
    fits = [str(n) for n in range(2, 9) if all(size % n == 0 for size in sizes.values())]
    return IncompatibleWeightsError(
        f"{card.id} cannot be divided evenly among {ranks} ranks: {', '.join(wrong)}.",
        hint=f"It can be among {' or '.join(fits)}." if fits else "Choose another model, or one device.",
    )


def _between_groups(
    card: ModelCard, config: Mapping[str, Any], sizes: Mapping[str, int], ranks: int
) -> list[str]:
    """Widths of packed weights that would be cut within a group."""
    settings = card.quantization
    if settings is None:
        return []
    group = settings.get("group_size", 64)
    head = config.get("head_dim") or config["hidden_size"] // sizes["num_attention_heads"]
    widths = {"num_attention_heads": sizes["num_attention_heads"] * head}
    widths |= {key: size for key, size in sizes.items() if key.endswith("intermediate_size")}
    return [
        f"the width of {key}, {width}, in groups of {group} packed weights"
        for key, width in widths.items()
        if width % (group * ranks)
    ]


def _estimate(
    card: ModelCard, whole: Callable[[Any], MemoryEstimate], ranks: int
) -> Callable[[Any], MemoryEstimate]:
    """Of all ranks on this machine; on CUDA of one, which has a device of its own."""
    everywhere = sum(tensor.nbytes for tensor in card.tensors if ".layers." not in tensor.name)
    share = everywhere / max(1, card.weight_bytes)

    def estimate(workload: Any) -> MemoryEstimate:
        found = whole(workload)
        repeated = int(found.weights * share)
        if workload.backend == "cuda":
            return evolve(
                found,
                weights=repeated + -(-(found.weights - repeated) // ranks),
                cache=-(-found.cache // ranks),
            )
        return evolve(found, weights=found.weights + repeated * (ranks - 1))

    return estimate


__all__ = ["HONOURS", "PIPELINE", "TENSOR", "claim"]
