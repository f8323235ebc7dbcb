"""Language models for MLXEngine, on mlx-lm. The hooks are in ``plugin``; nothing here is imported early."""
