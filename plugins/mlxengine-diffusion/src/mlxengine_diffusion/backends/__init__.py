"""The libraries that make pictures, behind one small protocol, in a fixed order.

Where two can serve a repository, the first of `ORDER` that is installed does, unless the flag
``diffusion.backend`` names another. The order and the reason for each place:

1. ``sd``: Stable Diffusion 1, 2 and XL. Always installed; checks every tensor; the only one with samplers.
2. ``mlx_vlm``: Z-Image and FLUX.2 klein. Resolves beside the other plugins on every platform.
3. ``mflux``: FLUX.1 with Kontext and Fill, Qwen-Image, and FLUX.2 klein once more, with the pictures and the
   time of mlx-vlm. It is installed without its metadata, which resolves beside nothing here.
4. ``diffusionkit``: Stable Diffusion 3 and 3.5, and FLUX.1 schnell in its own format. Last, because it brings
   torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen
from mlxengine import LoadContext, ModelCard
from mlxengine.errors import BackendUnavailableError, UnsupportedArchitectureError

from .._served import candidates
from ._memory import Stages

if TYPE_CHECKING:
    from ._work import Pipeline

ORDER = ("sd", "mlx_vlm", "mflux", "diffusionkit")


@frozen(kw_only=True)
class Defaults:
    """What a request that leaves something open gets."""

    size: tuple[int, int] = (512, 512)
    steps: int = 30
    guidance: float = 7.5
    scheduler: str = ""
    strength: float = 0.75


@frozen(kw_only=True)
class Offer:
    """What a back end says about a model before it is fetched.

    Args:
        files: glob patterns of what it loads.
        problem: why loading would certainly fail.
        stages: what each of its parts takes, for what is to be made.
        size: (width, height) of its pictures where nobody says more.
    """

    files: tuple[str, ...]
    problem: Exception | None = None
    stages: Stages | None = None
    size: tuple[int, int] = (1024, 1024)


class Backend(Protocol):
    """One library. Each module of this package with a name in `ORDER` is one."""

    SUMMARY: str
    REMEDY: str

    def claim(self, card: ModelCard) -> Offer | None:
        """Whether it serves this model; pure."""
        ...

    def missing(self) -> str | None:
        """``None`` if the library is installed, else the name of what is not. Imports nothing."""
        ...

    def load(self, card: ModelCard, context: LoadContext) -> Pipeline:
        """Build the model lazily, on the loader's thread."""
        ...


def backend(name: str) -> Backend:
    """The back end of that name of `ORDER` (its module)."""
    module: Any = importlib.import_module(f"{__name__}.{name}")
    found: Backend = module
    return found


@frozen(kw_only=True)
class Choice:
    """The back end that serves a model, and why that one."""

    name: str
    offer: Offer
    reason: str


def choose(card: ModelCard, wanted: str | None = None) -> Choice | None:
    """The back end for a model: the one ``wanted``, else the first of `ORDER` that is installed.

    A model that only back ends serve which are not installed gets the first of them, with the problem
    that says what to install. ``None`` where no back end knows the model.
    """
    names = [name for name in ORDER if name in candidates(card)] if wanted is None else [wanted]
    offers = [(name, offer) for name in names if (offer := backend(name).claim(card)) is not None]
    if not offers and wanted is not None and choose(card) is not None:
        problem = UnsupportedArchitectureError(
            f"The back end {wanted!r} does not serve {card.architecture} ({card.id}).",
            hint="Leave diffusion.backend unset to get the one that does.",
        )
        return Choice(name=wanted, offer=Offer(files=(), problem=problem), reason="named by the caller")
    if not offers:
        return None
    others = [name for name, _ in offers]
    for name, offer in offers:
        if backend(name).missing() is None:
            reason = f"{name} of {', '.join(others)}" if len(others) > 1 else name
            return Choice(name=name, offer=offer, reason=reason)
    problem_of = [f"{name} needs {backend(name).missing()}: {backend(name).REMEDY}" for name in others]
    unavailable = BackendUnavailableError(
        f"{card.architecture} ({card.id}) needs a library that is not installed.",
        hint=" Or: ".join(problem_of),
    )
    first = offers[0]
    return Choice(
        name=first[0],
        offer=Offer(files=first[1].files, problem=unavailable, stages=first[1].stages),
        reason=f"{first[0]}, which is not installed",
    )


__all__ = [
    "ORDER",
    "Backend",
    "Choice",
    "Defaults",
    "Offer",
    "backend",
    "choose",
]
