"""How a model is loaded: as asked, or with less where memory is short, and what is said about it then."""

from __future__ import annotations

from attrs import evolve, frozen

from .._scheduling.faults import broken, calling
from ..contract._core_features import DEGRADE
from ..contract.configuration import ModelCard, ModelConfiguration
from ..contract.device import Device
from ..contract.features import Features, Layer, Level
from ..contract.fit import estimate, usual
from ..contract.hookspecs import Claim, MemoryEstimate
from ..contract.kinds import Kind, Lesser, Wanted
from ..contract.plugins import PluginRecord


@frozen(kw_only=True)
class Plan:
    """One way to load a model.

    Args:
        configuration: what the plugin is given.
        features: the flags in force.
        estimate: what it takes.
        device: the machine, with no more free memory than the budget has.
        refusable: whether the plugin may refuse flags that are this plan's own idea.
        reason: what is less than was asked for, and why; ``None`` for what was asked.
    """

    configuration: ModelConfiguration
    features: Features
    estimate: MemoryEstimate
    device: Device
    refusable: bool = False
    reason: str | None = None


def plans(
    card: ModelCard,
    claim: Claim,
    kind: Kind,
    record: PluginRecord,
    configuration: ModelConfiguration,
    features: Features,
    device: Device,
    *,
    refused: bool = False,
) -> tuple[Plan, ...]:
    """What was asked for, then, unless ``core.degrade`` is off, what the kind would take less memory with.

    Ways that take no less than the one before are left out. ``refused`` is for a model whose plugin refused
    flags of such a way.
    """
    workload = usual(kind, device)
    degrade = kind.find("degrade")
    wanted = Wanted(
        configuration=configuration,
        features=features,
        plugin=record.name,
        workload=workload,
        refused=refused,
    )
    found: list[Plan] = []
    with calling(record, "degrade"):
        ways = list(degrade(wanted)) if degrade is not None else []
    for way in ways or [Lesser(words="", workload=workload)]:
        if not isinstance(way, Lesser):
            raise broken(record, "degrade", f"lists a {type(way).__name__}, not a Lesser")
        if found and not features.get(DEGRADE):
            break
        taken = estimate(card, claim, way.workload)
        if found and taken.total >= found[-1].estimate.total:
            continue
        reason = f"memory was short when it was loaded: it has {way.words}"
        found.append(
            Plan(
                configuration=evolve(configuration, **way.changes) if way.changes else configuration,
                features=features.over(Layer(Level.MEMORY, way.features)) if way.features else features,
                estimate=taken,
                device=device,
                refusable=way.refusable,
                reason=reason if found else None,
            )
        )
    return tuple(found)


__all__ = ["Plan", "plans"]
