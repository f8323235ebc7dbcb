"""How the lists of known models are read, and how one of them is chosen."""
