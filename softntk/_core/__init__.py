"""Shared programming tools: records, argument checks, compilation, meshes, checkpoints."""
