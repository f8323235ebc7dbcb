"""Text-to-image and image-to-image models for MLXEngine."""
