"""Which of several models suits a machine: what an entry's weights take, and the choice by it."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence

from attrs import frozen

from .._units import GIB, human
from ..contract.configuration import ModelConfiguration
from ..contract.device import Device
from ..contract.fit import allowed, rough
from ..errors import InvalidParameterError, ModelNotFoundError

_BITS = re.compile(r"(\d+(?:\.\d+)?)-?bits?|mxfp(\d)|nvfp(\d)|(?:q|int|iq)(\d)\w*")
_HALF = ("bf16", "fp16", "f16", "float16", "bfloat16", "none")
_SUFFIX = re.compile(
    r"[-_.](?:mlx|gguf|dwq|awq|gptq|qat|\d+(?:\.\d+)?-?bits?|mxfp\d|nvfp\d|b?fp?16|fp32|i?q\d\w*|int\d)(?=[-_.]|$)"
)
_CPU_BYTES = 6 * GIB  # a CPU reads every weight for every token: beyond this it is no conversation


class Prefer(enum.StrEnum):
    """What a recommendation is for."""

    QUALITY = "quality"
    SPEED = "speed"
    SMALL = "small"


@frozen(kw_only=True)
class Recommendation:
    """A model, why it was chosen, and what else would have fitted.

    Args:
        model: the entry.
        reason: one or two sentences for people.
        needed_bytes: what its plugin reckons for a model that is here, else what its weights tell.
        budget_bytes: what it was held against.
        checked: whether the entry's facts were ever compared with the hub.
        alternatives: the other entries that fit, best first.
    """

    model: ModelConfiguration
    reason: str
    needed_bytes: int
    budget_bytes: int
    checked: bool
    alternatives: tuple[ModelConfiguration, ...] = ()


def bits_of(item: ModelConfiguration) -> float | None:
    """Bits for one weight by the entry's quantization, scales included; ``None`` if it is unknown."""
    return bits_named(item.quantization)


def bits_named(quantization: str | None) -> float | None:
    """Bits for one weight in a quantization of this name; ``None`` if the name says nothing."""
    name = (quantization or "").lower()
    if name in _HALF:
        return 16.0
    if name in ("fp32", "float32"):
        return 32.0
    if (match := _BITS.search(name)) is None:
        return None
    micro = match[2] or match[3]
    return float(micro) + 0.25 if micro else float(match[1] or match[4]) + 0.5


def weight_bytes(item: ModelConfiguration) -> int | None:
    """Bytes of an entry's weights: as recorded, else parameters times bits; ``None`` if unknown."""
    if item.memory_bytes is not None:
        return item.memory_bytes
    size, bits = item.parameter_count or item.parameters, bits_of(item)
    return None if size is None or bits is None else int(size * bits / 8)


def base_name(item: ModelConfiguration) -> str:
    """The name of the model, or of what it was converted from, without organisation and quantization."""
    return _SUFFIX.sub("", (item.base_model or item.id).partition("@")[0].rpartition("/")[2].lower())


def needed_bytes(item: ModelConfiguration, device: Device) -> int | None:
    """Bytes to run an entry on a device, as far as its weights tell."""
    weights = weight_bytes(item)
    if weights is None:
        return None
    return rough(weights, item.parameter_count or item.parameters, device).total


def recommend(
    entries: Sequence[ModelConfiguration],
    kind: str,
    device: Device,
    prefer: Prefer,
    budget: int | None,
    task: str | None = None,
    reckon: Callable[[ModelConfiguration], int | None] | None = None,
) -> Recommendation:
    """See `ModelRegistry.recommend`."""
    if budget is not None and (isinstance(budget, bool) or budget <= 0):
        raise InvalidParameterError(f"budget={budget!r} must be a positive number of bytes.")
    room = allowed(device, budget)
    if room is None:
        raise InvalidParameterError(
            "The memory of this machine could not be found out.", hint="Pass budget=… in bytes."
        )
    limits = [room]
    if budget is None and device.backend == "cpu":
        limits.append(_CPU_BYTES)
    if prefer is Prefer.SPEED:
        limits.append(room // 4)
    limit = min(limits)
    needs = [(need, item) for item in entries if (need := needed_bytes(item, device)) is not None]
    fitting = [(need, item) for need, item in needs if need <= limit]
    best = sorted(fitting, key=_by_need if prefer is Prefer.SMALL else _by_quality)
    if reckon is not None:
        # The plugin knows better than the weights, but only of a model that is here: the best are asked.
        while best and (exact := reckon(best[0][1])) is not None:
            best[0] = (exact, best[0][1])
            if exact <= limit:
                break
            needs.append(best.pop(0))
    if not best:
        raise _nothing_fits(entries, needs, kind, limit, device)
    need, chosen = best[0]
    return Recommendation(
        model=chosen,
        reason=_reason(chosen, need, limit, device, prefer, [item for _, item in best], task),
        needed_bytes=need,
        budget_bytes=limit,
        checked=chosen.provenance is not None,
        alternatives=tuple(item for _, item in best[1:]),
    )


def _by_need(pair: tuple[int, ModelConfiguration]) -> tuple[object, ...]:
    return (pair[0], pair[1].id)


def _by_quality(pair: tuple[int, ModelConfiguration]) -> tuple[object, ...]:
    need, item = pair
    return (-(item.parameters or 0.0), -(bits_of(item) or 0.0), need, item.id)


def _reason(
    item: ModelConfiguration,
    need: int,
    limit: int,
    device: Device,
    prefer: Prefer,
    fitting: Sequence[ModelConfiguration],
    task: str | None,
) -> str:
    superlative = {
        Prefer.QUALITY: "the largest",
        Prefer.SPEED: "the largest that stays quick",
        Prefer.SMALL: "the smallest",
    }
    choice = (
        f"{superlative[prefer]} of {len(fitting)} that fit" if len(fitting) > 1 else "the only one that fits"
    )
    if task is not None:
        choice += f" and are for {task}" if len(fitting) > 1 else f" and is for {task}"
    text = f"It is {choice}: about {human(need)} of {human(limit)} on this {device.name}."
    if (
        any(base_name(other) == base_name(item) for other in fitting if other is not item)
        and prefer is Prefer.QUALITY
    ):
        bits = item.quantization if item.quantization not in (None, "none") else "full precision"
        text += f" Of its variants, {bits} is the largest that fits."
    if item.provenance is None:
        text += " No source names the entry: it was not checked."
    return text


def _nothing_fits(
    entries: Sequence[ModelConfiguration],
    needs: Sequence[tuple[int, ModelConfiguration]],
    kind: str,
    limit: int,
    device: Device,
) -> ModelNotFoundError:
    if not entries:
        return ModelNotFoundError(
            f"No entry of kind {kind!r} may be chosen from.",
            hint=f"`mlxengine models --kind {kind}` lists all.",
        )
    if not needs:
        return ModelNotFoundError(f"No entry of kind {kind!r} says how large it is.")
    need, item = min(needs, key=lambda pair: pair[0])
    return ModelNotFoundError(
        f"No {kind} fits into {human(limit)} on this {device.name}: "
        f"the smallest, {item.id}, needs about {human(need)}.",
        hint="Give a larger budget, or free memory.",
    )
