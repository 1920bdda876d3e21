"""Under this name for methods whose claims were measured with it: see :mod:`nett.core.token_batches`."""

from nett.core.token_batches import checked

__all__ = ["checked"]
