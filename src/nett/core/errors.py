"""Errors are for people.

    NettError            exit 1   something went wrong
      UsageError         exit 2   the call's words are off
      Refused            exit 3   the plan says no; nothing was written
      ProofFailed        exit 4   the output does not keep what its receipt promises

A message says what happened with the value, where, and what would be accepted; ``hint`` is the command or
edit that mends it.
"""

from __future__ import annotations

from collections.abc import Iterable


class NettError(Exception):
    """Base of every error that nett raises on purpose."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, None if where is None else str(where), hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(NettError):
    """A word, option or recipe key that nett does not understand."""

    exit_code = 2


class Refused(NettError):
    """The work cannot be done as asked; found before it started, or nothing of it was kept."""

    exit_code = 3


class ProofFailed(NettError):
    """A check of an output against its receipt, or of a claim, came out negative."""

    exit_code = 4


def missing_extra(module: str, extra: str, what: str) -> Refused:
    """The error for an optional dependency that is not installed."""
    return Refused(
        f"{what} needs the Python package '{module}', which is not installed.",
        hint=f"Install it: pip install torch==2.13.0 && pip install 'nett[{extra}]'"
        if extra == "models"
        else f"Install it: pip install 'nett[{extra}]'",
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'density'?`` or the list of what exists when nothing is near."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return f" Known: {', '.join(names)}." if names else ""
