"""How a model is loaded: as asked, or with less where memory is short, and what is said about it then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve, frozen

from ..contract._core_features import DEGRADE
from ..contract._well_known import LLMEngineFeatures
from ..contract.configuration import ModelCard, ModelConfiguration
from ..contract.device import Device
from ..contract.features import Feature, Features, Layer, Level
from ..contract.fit import USUAL_CONTEXT, estimate
from ..contract.hookspecs import Claim, MemoryEstimate, Workload
from ..contract.plugins import PluginRecord

# Half the usual context costs most conversations nothing; then caches of 8 bits, which cost a little
# accuracy; what is shorter still serves questions, not documents.
SHORTER = (2048, 1024, 512)
KV_BITS = 8


@frozen(kw_only=True)
class Plan:
    """One way to load a model.

    Args:
        configuration: what the plugin is given.
        features: the flags in force.
        estimate: what it takes.
        device: the machine, with no more free memory than the budget has.
        packed: whether packed caches are this plan's own idea, which the plugin may refuse.
        reason: what is less than was asked for, and why; ``None`` for what was asked.
    """

    configuration: ModelConfiguration
    features: Features
    estimate: MemoryEstimate
    device: Device
    packed: bool = False
    reason: str | None = None


def plans(
    card: ModelCard,
    claim: Claim,
    record: PluginRecord,
    configuration: ModelConfiguration,
    features: Features,
    device: Device,
    *,
    pack: bool = True,
) -> tuple[Plan, ...]:
    """What was asked for, then, unless ``core.degrade`` is off, ways that take less and less memory.

    A context that the caller bounded to the usual one or less, and bits that anybody set, are left alone.
    ``pack=False`` leaves out packed caches, for a model that has caches of its own.
    """
    flag = _packing(features, record)
    bits = None if flag is None else features.get(flag)
    own = configuration.context_length
    bounded = own if own is not None and own <= USUAL_CONTEXT else None

    def reckon(context: int | None, bits: int | None) -> MemoryEstimate:
        free = device.free_memory
        return estimate(
            card,
            claim,
            Workload(context_length=context, kv_bits=bits, backend=device.backend, free_memory=free),
        )

    found = [
        Plan(
            configuration=configuration,
            features=features,
            estimate=reckon(bounded, bits),
            device=device,
        )
    ]
    if not features.get(DEGRADE) or not found[0].estimate.cache:
        return tuple(found)
    may_pack = pack and flag is not None and features.explain(flag).source is Level.DEFAULT
    for context, packed in _steps(bounded, may_pack and _available(features, flag)):
        taken = reckon(context or bounded, KV_BITS if packed else bits)
        if taken.total >= found[-1].estimate.total:
            continue
        words = [f"{context} tokens of context"] if context else []
        view = features
        if packed:
            assert flag is not None
            words.append(f"a key-value cache of {KV_BITS} bits")
            view = features.over(Layer(Level.MEMORY, {flag.name: KV_BITS}))
        found.append(
            Plan(
                configuration=evolve(configuration, context_length=context) if context else configuration,
                features=view,
                estimate=taken,
                device=device,
                packed=packed,
                reason=f"memory was short when it was loaded: it has {' and '.join(words)}",
            )
        )
    return tuple(found)


def _steps(bounded: int | None, may_pack: bool) -> Iterator[tuple[int | None, bool]]:
    contexts: tuple[int | None, ...] = SHORTER if bounded is None else (None,)
    for at, context in enumerate(contexts):
        if context is not None and at == 0:
            yield context, False
        if may_pack:
            yield context, True
    if not may_pack:
        yield from ((context, False) for context in contexts[1:])


def _packing(features: Features, record: PluginRecord) -> Feature[Any] | None:
    """The plugin's flag for the bits of its key-value caches, if it has one."""
    registry = features.registry
    for flag in registry.providers(LLMEngineFeatures.KV_QUANTIZATION):
        if registry.provider(flag.name) == record.name:
            return flag
    return None


def _available(features: Features, flag: Feature[Any] | None) -> bool:
    return flag is not None and features.registry.why_not(flag) is None and KV_BITS in flag.choices


__all__ = ["Plan", "plans"]
