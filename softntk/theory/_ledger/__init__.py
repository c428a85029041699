"""The ledger: the statements of the papers, measured on random instances."""
