"""Whether a model fits a device, with the arithmetic as values, before anything is downloaded."""

from __future__ import annotations

import enum

from attrs import evolve, frozen

from .._units import human
from ..errors import InvalidParameterError
from .configuration import ModelCard
from .device import Device
from .hookspecs import Claim, MemoryEstimate, Workload
from .kinds import Kind

TIGHT_SHARE = 0.8
"""Beyond this share of the budget a model fits, but leaves little for anything else."""
ROUGH_SHARE = 0.2
"""What is added to weights for caches and working space where no plugin can reckon it."""

_WIDTHS = {"cpu": 4, "cuda": 2}  # bytes of a weight that is unpacked


class FitVerdict(enum.StrEnum):
    """Whether a model fits in this machine's memory."""

    FITS = "fits"
    TIGHT = "tight"
    WONT_FIT = "wont_fit"
    UNKNOWN = "unknown"


def judge(needed: float | None, budget: int | None) -> FitVerdict:
    """Compare bytes that are needed with bytes that may be used; ``None`` is unknown."""
    if needed is None or budget is None:
        return FitVerdict.UNKNOWN
    if needed > budget:
        return FitVerdict.WONT_FIT
    return FitVerdict.FITS if needed <= TIGHT_SHARE * budget else FitVerdict.TIGHT


@frozen(kw_only=True)
class FitReport:
    """A verdict and what it is made of, in bytes.

    Args:
        verdict: ``fits``, ``tight``, ``wont_fit`` or ``unknown``.
        model: the model's id.
        kind: which kind it is of.
        estimate: weights as they are loaded here, caches and working space.
        needed: their sum.
        budget: what models may use on the device (``None``: nobody knows).
        workload: what it was reckoned for.
        device: the device's name and back end.
    """

    verdict: FitVerdict
    model: str
    kind: str
    estimate: MemoryEstimate
    needed: int
    budget: int | None
    workload: Workload
    device: str

    @property
    def margin(self) -> int | None:
        """Bytes that are left, negative if too few."""
        return None if self.budget is None else self.budget - self.needed

    @property
    def explanation(self) -> tuple[str, str, str]:
        """Three lines for people: the verdict, the arithmetic, and what follows from it."""
        parts = f"{human(self.estimate.weights)} weights"
        if self.estimate.cache or not self.estimate.cache_known:
            guess = "" if self.estimate.cache_known else " (a guess: it is measured when the model is loaded)"
            parts += f" + {human(self.estimate.cache)} cache{guess}"
        parts += f" + {human(self.estimate.workspace)} working space"
        budget = "an unknown budget" if self.budget is None else human(self.budget)
        words = {
            FitVerdict.FITS: "fits",
            FitVerdict.TIGHT: "fits, but tightly,",
            FitVerdict.WONT_FIT: "does not fit",
            FitVerdict.UNKNOWN: "may or may not fit",
        }
        follow = {
            FitVerdict.FITS: f"{human(abs(self.margin or 0))} are left for other models.",
            FitVerdict.TIGHT: f"Only {human(abs(self.margin or 0))} are left: close other programs first.",
            FitVerdict.WONT_FIT: f"{human(abs(self.margin or 0))} are missing: take a smaller or more "
            "strongly quantized variant, or ask it for less at once.",
            FitVerdict.UNKNOWN: "This machine does not say how much memory models may use.",
        }
        return (
            f"{self.model} {words[self.verdict]} on {self.device}.",
            f"{parts} = {human(self.needed)}, of {budget}.",
            follow[self.verdict],
        )


def allowed(device: Device, budget: int | None = None) -> int | None:
    """Bytes that models may use on a device: a budget of the caller's, else what the device recommends."""
    return budget or device.working_set or device.total_memory


def usual(kind: Kind, device: Device) -> Workload:
    """The workload that a kind is reckoned for where nobody says more."""
    found: Workload = kind.find("workload")(backend=device.backend, free_memory=device.free_memory)
    return found


def estimate(card: ModelCard, claim: Claim, workload: Workload) -> MemoryEstimate:
    """What the plugin reckons, or `rough` where it does not."""
    if claim.estimate is not None:
        return claim.estimate(workload)
    return rough(card.weight_bytes if claim.uses_mlx else 0)


def rough(weights: int, parameters: float | None = None, device: Device | None = None) -> MemoryEstimate:
    """What can be said by the weights alone: of an entry of the registry, or a model that the hub found.

    On a CPU weights are kept in fp32, and packed ones are unpacked there and on CUDA (to 16 bits) where that
    takes at most half of the free memory (`mlxengine.toolkit.dtype`). A fifth is added for the rest.
    """
    width = None if device is None else _WIDTHS.get(device.backend)
    if device is not None and width is not None and parameters is not None:
        dense, packed = int(width * parameters), weights < 1.5 * parameters
        if not packed or device.free_memory is None or dense <= device.free_memory // 2:
            weights = max(weights, dense)
    return MemoryEstimate(weights=weights, workspace=int(weights * ROUGH_SHARE))


def fit(
    card: ModelCard,
    claim: Claim,
    kind: Kind,
    device: Device,
    workload: Workload | None = None,
    *,
    budget: int | None = None,
) -> FitReport:
    """Reckon whether a model fits.

    Args:
        card, claim, kind: the model, the claim of the plugin that serves it, and its kind.
        device: the machine.
        workload: what it is to do; ``None`` is the usual. Where it runs is filled in.
        budget: bytes to stay within instead of what the device recommends.

    Raises:
        InvalidParameterError: the workload is one of another kind.
    """
    room = allowed(device, budget)
    sizes = [size for size in (device.free_memory, room) if size is not None]
    common = usual(kind, evolve(device, free_memory=min(sizes, default=None)))
    if workload is not None and not isinstance(workload, type(common)):
        raise InvalidParameterError(
            f"The workload of a model of kind {kind.name!r} is a {type(common).__name__}, "
            f"found {type(workload).__name__}."
        )
    if workload is None:
        workload = common
    else:
        workload = evolve(workload, backend=common.backend, free_memory=common.free_memory)
    found = estimate(card, claim, workload)
    return FitReport(
        verdict=judge(found.total, room),
        model=card.id,
        kind=claim.kind,
        estimate=found,
        needed=found.total,
        budget=room,
        workload=workload,
        device=f"{device.name} ({device.backend})",
    )


__all__ = ["FitReport", "FitVerdict", "allowed", "estimate", "fit", "judge", "rough", "usual"]
