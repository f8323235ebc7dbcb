"""Give back the memory that mlx keeps of freed buffers; importing this loads a fast BLAS, then mlx."""

from .._machine.backend import clear_cache

__all__ = ["clear_cache"]
