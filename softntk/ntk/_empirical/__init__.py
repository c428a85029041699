"""The empirical kernel as an array."""
