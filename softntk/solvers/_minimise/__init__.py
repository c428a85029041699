"""The driver: one loop for every optax transform."""
