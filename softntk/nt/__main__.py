"""Print which parts of neural_tangents work on this Python and JAX: ``python -m softntk.nt``."""

import sys

from softntk.nt._self_check import main

if __name__ == "__main__":
    sys.exit(main())
