"""``python -m nett`` is ``nett``."""

from nett.cli import main

if __name__ == "__main__":
    main()
