"""Memory of freed buffers, kept or given back; importing this loads a fast BLAS, then mlx."""

from .._machine.backend import clear_cache, keep_pages, release_pages

__all__ = ["clear_cache", "keep_pages", "release_pages"]
