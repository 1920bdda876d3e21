"""Moments of what goes into a layer, gathered batch by batch: what calibrated methods know of their data."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

from nett.core.errors import NettError

NAMES = ("gram", "squares", "means", "magnitudes", "largest")


@final
class Moments:
    """Over the rows x of width ``columns``: ``gram`` mean of x x^T ``[columns, columns]``, ``squares`` mean of x^2,
    ``means``, ``magnitudes`` mean of \\|x\\|, ``largest`` of \\|x\\| (each ``[columns]``); float32 sums of a batch's
    rows each, added up in float64 but for the Gram matrix."""

    def __init__(self, columns: int, wanted: Collection[str], device: Any = "cpu") -> None:
        import torch

        self.rows, self.wanted = 0, frozenset(wanted)
        self._gram = torch.zeros(columns, columns, device=device) if "gram" in self.wanted else None
        self._made: Any = None
        self._sums: dict[str, Any] = {
            n: torch.zeros(columns, dtype=torch.float64, device=device)
            for n in ("squares", "means", "magnitudes")
            if n in self.wanted
        }
        self._largest = torch.zeros(columns, device=device)

    def add(self, inputs: Any) -> None:
        """Rows ``[…, columns]``, float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.rows += len(rows)
        self._made = None
        if self._gram is not None:
            _add_products(self._gram, rows)
        for name, total in self._sums.items():
            part = rows.square() if name == "squares" else rows.abs() if name == "magnitudes" else rows
            total += part.sum(0)
        if "largest" in self.wanted:
            self._largest = self._largest.maximum(rows.abs().amax(0))

    def __getitem__(self, name: str) -> Any:
        """A moment by its name, float32; NettError where no row was seen."""
        if not self.rows:
            raise NettError("no input was seen: the layer is not run on the calibration text")
        if name == "gram" and self._gram is not None:
            if self._made is None:  # several layers ask for it
                half = self._gram.triu() / self.rows
                self._made = half + half.triu(1).T
            return self._made
        return self._largest.clone() if name == "largest" else (self._sums[name] / self.rows).float()


def _add_products(gram: Any, rows: Any) -> None:
    """Add rows^T rows to the upper triangle of ``gram``; on the CPU by BLAS's product for symmetric results, which
    does half the work."""
    if gram.device.type != "cpu":
        gram.addmm_(rows.T, rows)
        return
    from scipy.linalg.blas import ssyrk

    flat, into = rows.detach().contiguous().numpy(), gram.numpy()
    made = ssyrk(1.0, flat.T, beta=1.0, c=into.T, lower=1, overwrite_c=1)  # columns first: its lower is our upper
    if made.ctypes.data != into.ctypes.data:  # it copies what it cannot work in
        into[...] = made.T
