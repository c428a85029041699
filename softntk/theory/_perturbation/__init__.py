"""How far a kernel moves when the weights do."""
