"""Who holds how much memory, and what a load may take."""
