"""Vision-language models for MLXEngine, on mlx-vlm."""
