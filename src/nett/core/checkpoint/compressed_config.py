"""What ``quantization_config`` of a compressed-tensors folder says: which weights are quantised, and how.

The layout is that of the compressed-tensors package (0.18), as its ``QuantizationArgs`` and compressors document it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.core.errors import Refused

PACKED = "pack-quantized"
PLAIN = ("int-quantized", "float-quantized", "naive-quantized")  # one stored number a weight
WHOLE = ("dense", "fakequant")  # the weights lie there as they are
MIXED = "mixed-precision"
BITS = range(1, 9)  # of packed weights
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24", "sparse-24")
_STRATEGIES = ("tensor", "channel", "group", "block")


@final
@dataclass(frozen=True)
class Scheme:
    """How the weights of one group of modules are stored. ``group``: columns that share a scale; ``block``: rows and
    columns that do; 0 where the strategy is another. ``inputs``: bits that a module's inputs are rounded to, a scale a
    token, when it runs; 0 for not."""

    targets: tuple[str, ...]
    format: str
    bits: int
    kind: str  # int or float
    symmetric: bool
    strategy: str
    group: int
    block: tuple[int, int]
    inputs: int = 0

    @property
    def label(self) -> str:
        """For people: ``INT4 group 128``."""
        size = {"group": f" {self.group}", "block": f" {self.block[0]}x{self.block[1]}"}.get(self.strategy, "")
        return f"{self.kind.upper()}{self.bits} {self.strategy}{size}" + ("" if self.symmetric else " zero point")


def schemes_of(said: Mapping[str, Any], where: Path) -> tuple[Scheme, ...]:
    """The schemes of a ``quantization_config``. Raises Refused naming the format that nett does not read."""
    _no_sparsity(said.get("sparsity_config"), where)
    if (said.get("transform_config") or {}).get("config_groups"):
        raise Refused(
            "its weights were rotated before they were quantised (transform_config), and part of that is undone only"
            " while the model runs: they do not stand for the original's weights",
            where=where,
            hint="Name the model that it was made from.",
        )
    overall = said.get("format") or "fakequant"
    _known(overall, where, (PACKED, *PLAIN, *WHOLE, MIXED))
    groups = said.get("config_groups") or {}
    if not isinstance(groups, dict):
        raise Refused(f"config_groups is {type(groups).__name__}, expected an object", where=where)
    found = []
    for name, group in groups.items():
        if isinstance(group, list):
            raise Refused(
                f"the group {name!r} of quantization_config is a preset's name, which says nothing of the layout",
                where=where,
                hint="Save the model again with a current compressed-tensors, which writes it out.",
            )
        if not isinstance(group, dict):
            raise Refused(f"the group {name!r} of quantization_config is not an object", where=where)
        if group.get("weights") is not None:
            found.append(_scheme(name, group, overall, where))
    return tuple(found)


def _no_sparsity(said: Any, where: Path) -> None:
    if not isinstance(said, dict):
        return
    kind = said.get("format") or "dense"
    if kind != "dense" or said.get("targets"):
        raise Refused(
            f"is stored in the sparse format {kind!r}, which compressed-tensors itself has given up; nett does not"
            " read it",
            where=where,
            hint="Decompress it with the version of compressed-tensors that wrote it, and save it dense.",
        )


def _known(kind: Any, where: Path, accepted: Sequence[str]) -> None:
    if kind in _SPARSE:
        _no_sparsity({"format": kind}, where)
    if kind not in accepted:
        raise Refused(
            f"stores weights in the compressed-tensors format {kind!r}, which nett does not read",
            where=where,
            hint=f"It reads {', '.join((PACKED, *PLAIN, 'dense'))}. Decompress the model with compressed-tensors first.",
        )


def _scheme(name: str, group: Mapping[str, Any], overall: str, where: Path) -> Scheme:
    said, kind = group["weights"], group.get("format") or overall
    _known(kind, where, (PACKED, *PLAIN, *WHOLE))

    def wrong(what: str) -> Refused:
        return Refused(f"the weights of the group {name!r} in quantization_config {what}", where=where)

    if not isinstance(said, dict):
        raise wrong("are not an object")
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise wrong(f"have the targets {targets!r}, expected a list of names")
    bits, number = said.get("num_bits", 8), str(said.get("type", "int")).lower()
    if type(bits) is not int or number not in ("int", "float") or (number == "float" and bits != 8):
        raise wrong(f"are of type {number!r} with {bits!r} bits; nett reads integers and 8-bit floats")
    if kind == PACKED and (bits not in BITS or number != "int"):
        raise wrong(
            f"are packed {number}s of {bits} bits; nett reads packed integers of 1 to 8 bits"
            " (others are laid out differently by different versions of compressed-tensors)"
        )
    size, block = said.get("group_size"), _block(said.get("block_structure"))
    strategy = said.get("strategy") or _implied(size, block)
    if strategy not in _STRATEGIES:
        raise wrong(f"have scales by {strategy!r}; nett reads {', '.join(_STRATEGIES)}")
    if strategy != "group":
        size = 0
    elif type(size) is not int or size < 1:
        raise wrong(f"have groups of {size!r} columns")
    if strategy == "block" and block is None:
        raise wrong(f"have blocks of {said.get('block_structure')!r}, expected rows and columns")
    return Scheme(
        tuple(targets),
        kind,
        bits,
        number,
        bool(said.get("symmetric", True)),
        str(strategy),
        int(size),
        block if strategy == "block" and block is not None else (0, 0),
        _inputs(group.get("input_activations")),
    )


def _inputs(said: Any) -> int:
    """Bits of inputs that are rounded around zero, a scale a token, as integers; 0 for anything else."""
    if not isinstance(said, dict) or not said.get("dynamic") or said.get("strategy") != "token":
        return 0
    integers = str(said.get("type", "int")).lower() == "int" and said.get("symmetric", True)
    bits = said.get("num_bits", 8)
    return bits if integers and type(bits) is int and bits in BITS else 0


def _implied(size: Any, block: tuple[int, int] | None) -> str:
    """The strategy that compressed-tensors takes where none is named."""
    if block is not None:
        return "block"
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _block(said: Any) -> tuple[int, int] | None:
    """``[128, 128]``, or ``"128x128"`` as older files have it."""
    found = re.fullmatch(r"(\d+)x(\d+)", said) if isinstance(said, str) else None
    sizes = [int(found[1]), int(found[2])] if found else said
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(type(n) is int and n > 0 for n in sizes):
        return None
    return sizes[0], sizes[1]


def candidates(schemes: Sequence[Scheme], module: str, where: Path) -> list[Scheme]:
    """The schemes that may be a module's: those that name it, else those that name a class (``Linear``)."""
    named = [s for s in schemes if any(_names(target, module, where) for target in s.targets)]
    return named or [s for s in schemes if any("." not in t and not t.startswith("re:") for t in s.targets)]


def _names(target: str, module: str, where: Path) -> bool:
    if not target.startswith("re:"):
        return target == module
    pattern = target.removeprefix("re:")
    if len(re.findall(r"[*+{]", pattern)) > 4 or re.search(r"\)[*+{]", pattern):
        raise Refused(f"the target {target!r} repeats too much to be tried in bounded time", where=where)
    try:
        return re.match(pattern, module) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(f"the target {target!r} is no regular expression: {error}", where=where) from error
