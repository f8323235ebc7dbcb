"""Time-series forecasting as a model kind of MLXEngine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._load import write_random_model
    from .handle import AsyncForecastHandle, ForecastHandle
    from .types import Forecasted, ForecastRequest, Point

_HOMES = {
    "write_random_model": "_load",
    "AsyncForecastHandle": "handle",
    "ForecastHandle": "handle",
    "Forecasted": "types",
    "ForecastRequest": "types",
    "Point": "types",
}

__all__ = [
    "AsyncForecastHandle",
    "ForecastHandle",
    "ForecastRequest",
    "Forecasted",
    "Point",
    "write_random_model",
]


def __getattr__(name: str) -> Any:
    # Looking for plugins imports this package; what a request is made of can wait for the first one.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
