"""What `import softntk` costs beside the import of jax, optax and lineax, each in a fresh process;
median of several.
"""

import argparse
import subprocess
import sys

from timing import alternate


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    def process(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    seconds = alternate(
        {
            name: lambda name=name: process(f"import {name}")
            for name in ("jax, optax, lineax", "softntk")
        },
        repeats,
    )
    for name, value in seconds.items():
        print(f"import {name:20} {value:.2f} s")
    print(f"ratio {seconds['softntk'] / seconds['jax, optax, lineax']:.2f}")


if __name__ == "__main__":
    main()
