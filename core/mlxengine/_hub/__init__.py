"""Finding and fetching models: the only package that uses huggingface_hub, imported lazily."""
