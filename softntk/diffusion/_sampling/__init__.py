"""Samples and likelihoods from a score."""
