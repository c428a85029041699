"""The ledger: the statements of the papers, run."""
