"""Rigorous certificates for one network or one regression."""
