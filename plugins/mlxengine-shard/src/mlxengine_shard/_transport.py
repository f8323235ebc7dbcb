"""By what ranks on this machine reach each other."""

from __future__ import annotations

from mlxengine.errors import FeatureUnavailableError


def transport_of(backend: str, ranks: int) -> str:
    """The back end of mx.distributed for so many ranks.

    Raises:
        FeatureUnavailableError: there are fewer CUDA devices, of which NCCL gives each rank one.
    """
    if backend != "cuda":
        return "ring"
    import mlx.core as mx

    if (found := mx.device_count(mx.gpu)) < ranks:
        raise FeatureUnavailableError(
            f"{ranks} ranks need {ranks} CUDA devices, and this process sees {found}.",
            hint="Ask for fewer ranks, or look at CUDA_VISIBLE_DEVICES.",
        )
    return "nccl"


__all__ = ["transport_of"]
