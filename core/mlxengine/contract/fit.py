"""Whether a model fits a device, with the arithmetic as values, before anything is downloaded."""

from __future__ import annotations

import enum

from attrs import frozen

from .._units import human
from .configuration import ModelCard
from .device import Device
from .hookspecs import Claim, MemoryEstimate, Workload

USUAL_CONTEXT = 4096
"""Tokens of context that an estimate assumes where nobody says how long it may become."""
TIGHT_SHARE = 0.8
"""Beyond this share of the budget a model fits, but leaves little for anything else."""


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
        if self.estimate.cache:
            parts += f" + {human(self.estimate.cache)} cache"
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
            "strongly quantized variant, or a shorter context.",
            FitVerdict.UNKNOWN: "This machine does not say how much memory models may use.",
        }
        return (
            f"{self.model} {words[self.verdict]} on {self.device}.",
            f"{parts} = {human(self.needed)}, of {budget}.",
            follow[self.verdict],
        )


def estimate(card: ModelCard, claim: Claim, workload: Workload) -> MemoryEstimate:
    """What the plugin reckons, or the weights and a tenth where it does not say."""
    if claim.estimate is not None:
        return claim.estimate(workload)
    weights = card.weight_bytes if claim.uses_mlx else 0
    return MemoryEstimate(weights=weights, workspace=weights // 10)


def fit(
    card: ModelCard,
    claim: Claim,
    device: Device,
    *,
    context_length: int | None = None,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    kv_bits: int | None = None,
    budget: int | None = None,
) -> FitReport:
    """Reckon whether a model fits.

    Args:
        card, claim: the model, and the claim of the plugin that serves it.
        device: the machine.
        context_length: tokens of prompt and answer together; ``None`` is the plugin's usual.
        batch: requests at once.
        size: (width, height) of a picture in pixels.
        kv_bits: bits of the key-value cache.
        budget: bytes to stay within instead of what the device recommends.
    """
    allowed = budget or device.working_set or device.total_memory
    sizes = [size for size in (device.free_memory, allowed) if size is not None]
    workload = Workload(
        context_length=context_length,
        batch=batch,
        size=size,
        kv_bits=kv_bits,
        backend=device.backend,
        free_memory=min(sizes, default=None),
    )
    found = estimate(card, claim, workload)
    return FitReport(
        verdict=judge(found.total, allowed),
        model=card.id,
        kind=claim.kind,
        estimate=found,
        needed=found.total,
        budget=allowed,
        workload=workload,
        device=f"{device.name} ({device.backend})",
    )


__all__ = ["FitReport", "FitVerdict", "fit"]
