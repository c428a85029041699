"""Measured changes of a kernel under perturbed weights, and bounds on them."""
