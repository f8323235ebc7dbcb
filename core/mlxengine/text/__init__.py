"""The vocabulary of language and vision-language models."""
