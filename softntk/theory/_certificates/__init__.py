"""Certificates that are rigorous, for one network or one regression."""
