"""A Ray cluster for replicas, of their own or one that runs; and whether there is room for them."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from attrs import frozen
from mlxengine.errors import (
    FeatureUnavailableError,
    GenerationError,
    InsufficientMemoryError,
    InvalidParameterError,
    MLXEngineError,
)

_OF_ONE_MACHINE = {
    "RAY_AUTH_MODE": "token",
    # Ray's own switch for "there is no second machine", on by default only on macOS and Windows: with it
    # every server of Ray listens on loopback, without it on all addresses
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@frozen(kw_only=True)
class Places:
    """What replicas take.

    Args:
        count: how many there are.
        needed: bytes of memory that each needs.
        budget: bytes that models may take on this machine; ``None``: not known.
        gpu: whether each needs a GPU of its own.
    """

    count: int
    needed: int
    budget: int | None
    gpu: bool

    def check(self, cpus: float, gpus: float) -> None:
        """Whether there is a logical CPU, and a GPU, for each; Ray would wait for it in silence.

        Raises:
            InvalidParameterError: there are fewer.
        """
        for what, there in (("logical CPUs", cpus), *([("GPUs", gpus)] if self.gpu else ())):
            if there < self.count:
                raise InvalidParameterError(
                    f"{self.count} replicas need {self.count} {what}, and there are {there:g}.",
                    hint=f"Ask for at most {max(1, int(there))} with --replicas.",
                )

    def check_memory(self) -> None:
        """Whether they fit on this machine together; on GPUs each has the memory of its own.

        Raises:
            InsufficientMemoryError: they do not.
        """
        if not self.gpu and self.budget is not None and self.needed * self.count > self.budget:
            raise InsufficientMemoryError(
                f"{self.count} replicas need {self.count} times {self.needed >> 20} MiB, "
                f"and models may take {self.budget >> 20} MiB here.",
                hint="Ask for fewer with --replicas; one process serves many at once as well.",
            )


@contextmanager
def cluster(places: Places, address: str | None, extra: str) -> Iterator[Any]:
    """The module ``ray``, connected.

    Args:
        places: what is to run there.
        address: of a cluster; ``None`` starts one, which has a token of its own and ends with the block.
        extra: of this distribution, which brings Ray.

    Raises:
        FeatureUnavailableError: Ray is not installed.
        InvalidParameterError, InsufficientMemoryError: there is no room.
    """
    if address is None:
        places.check(os.cpu_count() or 1, places.count)
        places.check_memory()
        os.environ.update(_OF_ONE_MACHINE, RAY_AUTH_TOKEN=secrets.token_hex(32))
    ray = _ray(extra)
    with redirect_stdout(sys.stderr):  # Ray prints what died on stdout, which is for results
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            found = ray.cluster_resources()
            places.check(found.get("CPU", 0), found.get("GPU", 0))
            yield ray
        finally:
            ray.shutdown()


def cause(error: Any) -> MLXEngineError:
    """What a replica's method failed with."""
    found = getattr(error, "cause", None)
    if isinstance(found, MLXEngineError):
        return found
    return GenerationError(f"A replica failed: {error}.", hint="Report it, with what mlxengine -vv says.")


def _ray(extra: str) -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise FeatureUnavailableError(
            "Several replicas need Ray, which is not installed.",
            hint=f'pip install "mlxengine-ray[{extra}]", or leave out --replicas: one process does the same.',
        ) from error
    return ray


__all__ = ["Places", "cause", "cluster"]
