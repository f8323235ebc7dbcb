"""The vocabulary of models that make pictures."""
