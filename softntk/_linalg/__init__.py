"""Linear algebra that several packages share: products, norms, Gram matrices, eigenvalues."""
