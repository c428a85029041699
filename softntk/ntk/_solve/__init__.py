"""Linear systems with a kernel."""
