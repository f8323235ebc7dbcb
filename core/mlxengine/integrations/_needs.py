"""What to say where a framework is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigurationError


@contextmanager
def needs(framework: str, extra: str) -> Iterator[None]:
    """Around the imports of a framework, which the extra brings.

    Raises:
        ConfigurationError: one of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"This module is for {framework}, which cannot be imported: {error}.",
            hint=f'Install "mlxengine[{extra}]".',
        ) from error


__all__ = ["needs"]
