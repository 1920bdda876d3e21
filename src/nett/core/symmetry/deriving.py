"""From what the user has to a proved symmetry: a torch module, or the config of a transformers model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nett.core.errors import Refused, UsageError, did_you_mean, missing_extra
from nett.core.symmetry.groups import Origin, Symmetry
from nett.core.symmetry.proof import Proof, prove_module
from nett.core.symmetry.shrunken import prove_config
from nett.core.symmetry.trace import of_module
from nett.core.symmetry.transformer import of_config


def proved_symmetry(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    config: Mapping[str, Any] | None = None,
    module: Any = None,
    example: Any = None,
    seed: int = 0,
    where: object = None,
) -> tuple[Symmetry, list[Proof]]:
    """The proved permutation symmetry of the network whose tensors have these names and shapes.

    Args:
        config: ``config.json`` of a transformers model; used where no module is given.
        module: the torch module that the tensors are the state dict of; ``example`` is what it is called with.

    Returns the symmetry (``.refused`` says what is not permuted, and why) and what was seen of each group. Refused,
    with the reason, where nothing can be derived or no group passes.
    """
    if module is not None:
        if example is None:
            raise UsageError("a module needs an example of its input", where=where, hint="Add --input 1x3x32x32.")
        symmetry = of_module(module, example)
        _same_tensors(symmetry, shapes, where)
        symmetry, proofs = prove_module(symmetry, module, example, seed=seed)
        symmetry = symmetry.only(shapes)
    elif config is not None:
        symmetry = of_config(config, shapes)
        symmetry, proofs = prove_config(symmetry, config, seed=seed)
    else:
        raise Refused(
            "which of its units may change places cannot be told from tensors alone",
            where=where,
            hint="Name the code that makes the network: --net FILE.py:FUNCTION --input 1x3x32x32 (from Python: module=, "
            "example=). Folders of transformers models need neither: they have a config.json.",
        )
    if not symmetry.groups:
        said = "; ".join(str(r) for r in symmetry.refused) or "it has no hidden units"
        raise Refused(f"no group of units may change places: {said}", where=where)
    return replace(symmetry, origin=Origin(module, example, None if module is not None else config)), proofs


def network(named: str) -> Any:
    """The torch module that ``package.module:function`` or ``file.py:function`` makes."""
    place, _, function = named.rpartition(":")
    if not place:
        raise UsageError(f"{named!r} names no function", hint="Write FILE.py:FUNCTION or package.module:FUNCTION.")
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise missing_extra("torch", "models", "making a network from its code") from error
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise UsageError(f"there is no file {place!r}", where=named)
        spec = importlib.util.spec_from_file_location(f"_nett_net_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise UsageError(f"{place!r} cannot be imported", where=named)
        code = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = code
        spec.loader.exec_module(code)
    else:
        try:
            code = importlib.import_module(place)
        except ImportError as error:
            raise UsageError(f"cannot import {place!r}: {error}", where=named) from error
    made = getattr(code, function, None)
    if not callable(made):
        raise UsageError(f"{place} has no function {function!r}.{_near(code, function)}", where=named)
    module = made()
    if not hasattr(module, "state_dict"):
        raise UsageError(f"{function}() gave a {type(module).__name__}, not a torch module", where=named)
    return module


def _near(code: Any, function: str) -> str:
    """What may have been meant: the nearest public callables, or those that the file itself makes."""
    public = {name: made for name, made in vars(code).items() if not name.startswith("_") and callable(made)}
    near = did_you_mean(function, public)
    own = [name for name, made in public.items() if getattr(made, "__module__", None) == code.__name__]
    return near if "Did" in near else did_you_mean(function, own)


def example_input(shape: str) -> Any:
    """Zeros of the shape that ``1x3x32x32`` says."""
    import torch

    try:
        sizes = [int(part) for part in shape.lower().split("x")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"{shape!r} is no shape", hint="Write the sizes with x between them, such as 1x3x32x32.")
    return torch.zeros(sizes)


def _same_tensors(symmetry: Symmetry, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """The module's tensors are those that are there, but for counters that no function depends on."""
    for name, shape in shapes.items():
        known = symmetry.shapes.get(name)
        if known is None:
            near = did_you_mean(name, list(symmetry.shapes)[:500])
            raise Refused(f"the module has no tensor {name!r}.{near}", where=where, hint="Is this the network's code?")
        if tuple(known) != tuple(shape):
            raise Refused(f"tensor {name!r} has shape {list(shape)}, in the module {list(known)}", where=where)
    for name in symmetry.shapes:
        spare = name.endswith("num_batches_tracked") or symmetry.aliases.get(name) in shapes
        if name not in shapes and not spare:
            raise Refused(f"tensor {name!r} of the module is missing", where=where)
