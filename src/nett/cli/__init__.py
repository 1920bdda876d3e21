"""The command line: built from the cards; parses, calls, prints. Imports nothing heavy."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``nett``."""
    import gc

    from nett.cli.app import run
    from nett.core import jit

    gc.set_threshold(100_000, 20, 20)  # imports make many objects and no garbage: looking for it takes a tenth of them
    jit.OWN_PROCESS = True
    code = run(sys.argv[1:])
    gc.freeze()  # or the interpreter's last collections walk all that was imported: a quarter of a second
    sys.exit(code)
