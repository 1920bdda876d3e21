"""What the answers of a method become in files: which experts are written under which numbers, and what the router keeps.

``rows``: the router has a row for each new expert, that of the expert which leads its group. Exact where experts are
dropped (a row less is a choice less) and where all of a group had one row; otherwise approximate, for no row gives the
summed chances of several: log sum exp of linear functions is none. ``map``: the router keeps its rows, and the config
says which expert answers. ``copies``: as many experts as before. Both are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nett.core.errors import NettError, Refused
from nett.experts.layouts import FileLayer
from nett.experts.protocol import Answer, Kept, Merged, Tensor

Router = Literal["rows", "map", "copies"]


def check(layer: FileLayer, answer: Answer) -> None:
    """That an answer is one for this layer: numbers in range, each pool with equally many, no fewer than are chosen."""
    if isinstance(answer, Kept):
        numbers, what = list(answer.experts), "kept"
        good = sorted(set(numbers)) == numbers
    else:
        numbers, what = list(answer.leaders), "leading"
        good = (
            len(set(numbers)) == len(numbers) == len(answer.experts)
            and len(answer.groups) == layer.count
            and all(answer.groups[leader] == g for g, leader in enumerate(numbers))
            and set(answer.groups) == set(range(len(numbers)))
        )
    if not good or not numbers or not all(0 <= e < layer.count for e in numbers):
        raise NettError(f"a method gave no proper answer for {layer.name}: {what} {numbers}")


def check_parts(layer: FileLayer, answer: Answer) -> None:
    """Refused where split matrices have no tensors of their own to stand in for."""
    if isinstance(answer, Merged) and answer.parts is not None and layer.place.fused:
        raise Refused(f"the experts of {layer.name} are one tensor, so their matrices are not split", hint="--rank 1")


def check_rows(layer: FileLayer, rows: Sequence[int]) -> None:
    """Refused where a router with these rows of its own could not choose as many as it must."""
    if len(rows) < layer.least:
        raise Refused(f"{len(rows)} experts would stay in {layer.name}, but a token chooses {layer.chosen}")
    each = {len(set(rows) & set(pool)) for pool in layer.pools}
    if len(each) > 1:
        raise Refused(f"the pools of {layer.name}, from which its router chooses, would differ in size: {sorted(each)}")


def rows_of(layer: FileLayer, answer: Answer, router: Router) -> list[int]:
    """The rows that the router keeps."""
    if isinstance(answer, Kept):
        return list(answer.experts)
    return list(answer.leaders) if router == "rows" else list(range(layer.count))


def tensors_of(layer: FileLayer, answer: Merged, router: Router) -> dict[str, Tensor]:
    """The tensors of a merged layer: its experts, and the router where it changes."""
    experts = answer.experts
    if router == "copies":
        experts = experts.take(list(answer.groups))
    if answer.parts is None:
        found = layer.place.stored(experts)
    else:
        numbers = list(answer.groups) if router == "copies" else list(range(len(experts)))
        found = {}
        for role, names in layer.place.named(len(numbers)).items():
            for name, number in zip(names, numbers, strict=True):
                found |= {f"{name}.{part}": t.clone() for part, t in answer.parts[role][number].items()}
    rows = rows_of(layer, answer, router)
    if rows != list(range(layer.count)):
        found |= {name: layer.tensor(name)[rows] for name in (layer.place.router, *layer.place.beside)}
    return {name: t.contiguous() for name, t in found.items()}


def table_of(answer: Answer, router: Router) -> list[int] | None:
    """Which stored expert answers for each row of the router, where that is not its own."""
    if isinstance(answer, Kept) or router != "map":
        return None
    return list(answer.groups)


def stored_count(layer: FileLayer, answer: Answer, router: Router) -> int:
    """Experts that are written."""
    if isinstance(answer, Kept):
        return len(answer.experts)
    return layer.count if router == "copies" else len(answer.experts)


def said_of(layer: FileLayer, answer: Answer, seen: Tensor | None) -> dict[str, Any]:
    """The receipt's line on a layer."""
    about: Mapping[str, Any] = (
        {"kept": list(answer.experts)}
        if isinstance(answer, Kept)
        else {"groups": list(answer.groups), "leaders": list(answer.leaders)}
    )
    unseen = [] if seen is None else [e for e, n in enumerate(seen.tolist()) if not n]
    return {"experts": layer.count, **about, **({"unseen": unseen} if unseen else {}), **answer.record}
