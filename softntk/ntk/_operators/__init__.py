"""Kernels as operators that are never formed."""
