"""Stable Diffusion 1, 2 and XL: configuration, modules, weights, text, schedulers and adapters."""
