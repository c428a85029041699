"""Denoisers: by networks, by their linearisation and by kernels."""
