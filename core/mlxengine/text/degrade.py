"""What a model that answers in text is loaded with where memory is short."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import evolve

from ..contract._well_known import LLMEngineFeatures
from ..contract.features import Feature, Features, Level
from ..contract.kinds import Lesser, Wanted
from .workload import USUAL_CONTEXT, TextWorkload

# Half the usual context costs most conversations nothing; then caches of 8 bits, which cost a little
# accuracy; what is shorter still serves questions, not documents.
SHORTER = (2048, 1024, 512)
KV_BITS = 8


def degrade(wanted: Wanted) -> Iterator[Lesser]:
    """What was asked for, then shorter contexts and packed caches, by turns.

    A context that the caller bounded to the usual one or less, and bits that anybody set, are left alone.
    """
    own, flag = wanted.configuration.context_length, _packing(wanted)
    asked: TextWorkload = evolve(
        wanted.workload,
        context_length=own if own is not None and own <= USUAL_CONTEXT else None,
        kv_bits=None if flag is None else wanted.features.get(flag),
    )
    yield Lesser(words="", workload=asked)
    may_pack = (
        flag is not None
        and not wanted.refused
        and wanted.features.explain(flag).source is Level.DEFAULT
        and _available(wanted.features, flag)
    )
    for context, packed in _steps(asked.context_length, may_pack):
        words = [f"{context} tokens of context"] if context else []
        if packed:
            words.append(f"a key-value cache of {KV_BITS} bits")
        yield Lesser(
            words=" and ".join(words),
            workload=evolve(
                asked,
                context_length=context or asked.context_length,
                kv_bits=KV_BITS if packed else asked.kv_bits,
            ),
            changes={"context_length": context} if context else {},
            features={flag.name: KV_BITS} if packed and flag is not None else {},
            refusable=packed,
        )


def _steps(bounded: int | None, may_pack: bool) -> Iterator[tuple[int | None, bool]]:
    contexts: tuple[int | None, ...] = SHORTER if bounded is None else (None,)
    for at, context in enumerate(contexts):
        if context is not None and at == 0:
            yield context, False
        if may_pack:
            yield context, True
    if not may_pack:
        yield from ((context, False) for context in contexts[1:])


def _packing(wanted: Wanted) -> Feature[Any] | None:
    """The plugin's flag for the bits of its key-value caches, if it has one."""
    registry = wanted.features.registry
    for flag in registry.providers(LLMEngineFeatures.KV_QUANTIZATION):
        if registry.provider(flag.name) == wanted.plugin:
            return flag
    return None


def _available(features: Features, flag: Feature[Any]) -> bool:
    return features.registry.why_not(flag) is None and KV_BITS in flag.choices


__all__ = ["degrade"]
