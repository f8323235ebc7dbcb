"""All that the author of a plugin reads: a change here is a decision."""
