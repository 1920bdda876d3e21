"""Whether one model is another made smaller, layer by layer, so that what was lost can be told and made good."""

from __future__ import annotations

from nett.core.blocks import Skeleton
from nett.core.errors import Refused

_MOVED = 0.02  # relative change of a norm that rounding to 8 bits of significand explains


def check_pair(original: Skeleton, compressed: Skeleton) -> None:
    """Refused where the two differ in their layers, or where the compressed one's take other inputs."""
    where = compressed.checkpoint.path
    if compressed.checkpoint.format == "peft":
        raise Refused(
            "is itself a base with an adapter, which another adapter cannot name as its base",
            where=where,
            hint="Write it as one model first: nett convert BASE+ADAPTER OUT",
        )
    if (original.vocabulary, len(original)) != (compressed.vocabulary, len(compressed)):
        raise Refused(
            f"has {len(compressed)} layers and {compressed.vocabulary:,} tokens, the original {len(original)} and "
            f"{original.vocabulary:,}: it was not made of {original.checkpoint.path}",
            where=where,
        )
    mine, theirs = original.checkpoint.tensors, compressed.checkpoint.tensors
    inside = [n for n in mine if n.startswith(f"{original.stack}.")]
    for name in inside:
        if name not in theirs or theirs[name].shape != mine[name].shape:
            said = f"of shape {list(theirs[name].shape)}" if name in theirs else "missing"
            raise Refused(f"tensor {name!r} is {said}, in the original {list(mine[name].shape)}", where=where)
    for name in inside:
        if len(mine[name].shape) == 1 and mine[name].dtype.is_float:
            first, second = original.tensor(name).float(), compressed.tensor(name).float()
            if float((first - second).norm()) > _MOVED * float(first.norm()):
                raise Refused(
                    f"{name!r} is not the original's: the compression moved scales from one layer to another, so that "
                    "the difference of two matrices is not what it lost",
                    where=where,
                    hint="Compress without that (gptq, rtn, wanda, sparsegpt), or use it as it is.",
                )
