"""Batch jobs over files for MLXEngine, in one process or over replicas with Ray."""
