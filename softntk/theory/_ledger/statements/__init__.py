"""The statements of the ledger, by subject."""
