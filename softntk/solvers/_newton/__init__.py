"""Approximate Newton: curvature, its model, and steps that are globally safe."""
