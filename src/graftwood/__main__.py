"""`graft`, which is `python -m graftwood`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; Ctrl-C while its parts are still being read stops it as later."""
    try:
        from graftwood.cli import main as command
    except KeyboardInterrupt:
        print("graft: stopped", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
