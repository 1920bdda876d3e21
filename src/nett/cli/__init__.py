"""The command line: built from the cards; parses, calls, prints. Imports nothing heavy."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``nett``."""
    from nett.cli.app import run

    sys.exit(run(sys.argv[1:]))
