"""What the tests share: no test stands here."""

from support.typechecker import typechecked

__all__ = ["typechecked"]
