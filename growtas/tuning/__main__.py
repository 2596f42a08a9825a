"""``python -m growtas.tuning``: the same as ``growtas tune``, where tyro is not installed."""

from __future__ import annotations

import argparse
import sys

from growtas.errors import GrowtasError
from growtas.tuning.driver import tune


def main(argv: list[str] | None = None) -> int:
    """Tune. Returns: the exit status; 130 after Ctrl-C, with all finished classes kept."""
    parser = argparse.ArgumentParser(
        prog="python -m growtas.tuning", description=tune.__doc__.splitlines()[0]
    )
    parser.add_argument("space", nargs="?", default="autoformer-tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", nargs="+", default=())
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out")
    try:
        tune(**vars(parser.parse_args(argv)))
    except KeyboardInterrupt:
        print("Interrupted: finished classes are kept; the same command goes on.", file=sys.stderr)
        return 130
    except GrowtasError as error:
        print(f"growtas: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
