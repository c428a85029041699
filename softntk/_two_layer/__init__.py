"""Two-layer networks: architecture and weights, the rows of their Jacobian, their kernels of
infinite width.
"""
