"""All targets, what needs none and why, and who has which part of the package."""

import importlib

for _part in ("activations", "ntk", "dynamics", "curvature", "regression", "bounds", "solvers", "theory", "certificates"):
    importlib.import_module(f"fuzz.targets_{_part}")

LETTERS = {
    "activations": "a",
    "networks": "a",
    "stax": "a",
    "ntk": "c",
    "ntk.fixed_point": "a",
    "ntk.propagate": "a",
    "ntk.empirical": "b",
    "ntk.operator": "b",
    "ntk.kernel_operator": "b",
    "ntk.GramOperator": "b",
    "ntk.CrossOperator": "b",
    "solvers": "d",
    "solution": "d",
    "regression": "e",
    "curvature": "e",
    "theory": "f",
    "diffusion": "g",
}
