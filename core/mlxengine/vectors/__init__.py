"""The vocabulary of embedding models and cross-encoders."""
