"""The only owner of a thread that touches a model."""
