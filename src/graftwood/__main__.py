"""`python -m graftwood` is `graft`."""

from graftwood.cli import main

if __name__ == "__main__":
    main()
