"""Two-layer networks: architecture and weights, Jacobian rows, kernels of infinite width."""
