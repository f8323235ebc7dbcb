"""What the engine is made of: plugins, loading, the pool of models."""
