"""A seeded fuzzer of the public surface of softntk: valid but hard calls against oracles, invalid
ones against named errors.
"""
