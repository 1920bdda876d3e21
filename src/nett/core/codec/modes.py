"""Which form of planes suits a tensor, told from a sample of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final, get_args

from nett.core.codec import grid
from nett.core.codec.coders import code, entropy
from nett.core.codec.planes import PACKED, Form, to_planes
from nett.core.dtypes import Array

_SLOW = 1.02  # what forms must save whose planes FSE decodes: it is slow and holds the interpreter's lock


@final
@dataclass(frozen=True)
class Mode:
    """How a tensor's bytes become planes: numbers of ``width`` bytes, in this form; ``grid``: the name of its grid."""

    width: int
    form: Form
    grid: str = ""

    def __post_init__(self) -> None:
        if self.width < 2 and self.form in PACKED:
            raise ValueError(f"numbers of {self.width} byte have no two upper ones to pack")

    @property
    def needs_base(self) -> bool:
        return self.form in ("difference", "xor", *PACKED)

    def __str__(self) -> str:
        return f"{self.form}{self.width}" if not self.grid else f"{self.form}:{self.grid}:{self.width}"

    @classmethod
    def text(cls) -> Mode:
        """For what is no tensor."""
        return cls(1, "text")

    @classmethod
    def of(cls, text: str) -> Mode:
        """The inverse of ``str``. ValueError or KeyError where the text is no mode."""
        if text.startswith("grid:"):
            name, _, width = text.removeprefix("grid:").rpartition(":")
            grid.from_name(name)
            return cls(int(width), "grid", name)
        size, form = int(text[-1:]), text[:-1]
        if size < 1 or form not in get_args(Form) or form == "grid":
            raise ValueError(f"{text!r} is no mode")
        return cls(size, form)  # type: ignore[arg-type]


def estimated_bits(raw: Array, mode: Mode, base: Array | None = None) -> float:
    """Sum of the order-0 entropies of the planes, in bits a byte of ``raw``."""
    planes = to_planes(raw, mode.width, mode.form, base) if mode.form != "grid" else grid.to_grid(raw, mode.grid)
    if planes is None:
        return estimated_bits(raw, Mode(mode.width, "rotated"))
    return sum(entropy(p) * p.size for p in planes) / raw.size if raw.size else 0.0


def choose_mode(raw: Array, width: int, base: Array | None = None) -> tuple[Mode, float]:
    """The form with the least estimated bits for a sample of a tensor's bytes (and of the base's at the same
    places), with that estimate. A width that does not divide the sample becomes 1."""
    width = width if raw.size % width == 0 else 1
    forms: list[Form] = ["rotated", "plain"] if width > 1 else ["plain"]
    forms += ["difference", "xor"] if base is not None else []
    forms += ["pairs", "fours"] if base is not None and width > 1 else []
    modes = [Mode(width, form) for form in forms]
    lying = grid.found_in(raw, width)
    if lying is not None:
        modes.append(Mode(width, "grid", lying))
    found = {mode: estimated_bits(raw, mode, base) for mode in modes}
    best = min(found, key=lambda m: found[m] * (_SLOW if m.form in ("difference", "xor") else 1.0))
    if best.form in PACKED:  # a pair of zeros can be so frequent that Huffman's whole bit for it is too much
        assert base is not None
        packed = {form: to_planes(raw, width, form, base) for form in PACKED}
        best = Mode(width, min(packed, key=lambda form: sum(len(code(p)[1]) for p in packed[form])))
    return best, found[best]
