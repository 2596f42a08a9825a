"""``python -m growtas``: the same as ``growtas``."""

import sys

from growtas.cli import main

if __name__ == "__main__":
    sys.exit(main())
