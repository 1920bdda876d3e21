"""The survey's order of work on cheaper inference with mixtures of experts (P43): model, system and hardware level; and where
each method of this room stands in it.

A method says its place in its own docstring (``Place: model level, compression, pruning``), so adding one needs no edit here.
What no method names is not covered, and this page says what else serves, if anything does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from nett.core.errors import NettError, did_you_mean
from nett.core.registry import Card

BESIDE = "beside the levels"  # of what helps to find or choose methods, and is none


@final
@dataclass(frozen=True)
class Leaf:
    """A kind of work. ``elsewhere``: what else of nett serves where no method stands here, or why none does."""

    path: tuple[str, str, str]  # level, branch, kind
    about: str
    elsewhere: str = "Nothing here yet."

    @property
    def place(self) -> str:
        return ", ".join(self.path)


_DESIGN = "Decided when a model is trained; nett takes models as they are."
_FLEET = "Of many machines; nett works on one, and leaves the rest to engines that exist."

LEAVES: tuple[Leaf, ...] = tuple(
    Leaf((level, branch, kind), about, *rest)
    for level, branch, kind, about, *rest in (
        ("model level", "architecture", "expert design", "Finer, shared, or heterogeneous experts.", _DESIGN),
        ("model level", "architecture", "attention", "Attention that is itself a mixture, or holds less.",
         f"{_DESIGN} What attention holds while it runs: `nett cache`."),
        ("model level", "compression", "pruning", "Experts, or neurons of experts, that go."),
        ("model level", "compression", "quantisation", "Fewer bits a weight of an expert.",
         "`nett weights` quantises linear layers; it takes no fused experts apart."),
        ("model level", "compression", "distillation", "A smaller mixture that learns from the larger one."),
        ("model level", "compression", "low rank", "An expert's matrices as products of thin ones.",
         "With `rank` below 1, `nett experts mc_smoe` splits what it merges."),
        ("model level", "algorithm", "expert merging", "Several experts become one."),
        ("model level", "algorithm", "dynamic gating", "As many experts for a token as it needs.",
         "Needs a router that is trained or tuned for it."),
        ("model level", "algorithm", "expert skipping", "Chosen experts of little weight are not run.",
         "`nett experts profile` shows how much weight goes to whom; nothing skips at run time."),
        ("system level", "expert parallelism", "load balance", "Equal work for machines that hold different experts.",
         f"{_FLEET} `nett experts profile` says how uneven the work is."),
        ("system level", "expert parallelism", "all-to-all communication", "Tokens on their way to experts and back.", _FLEET),
        ("system level", "expert parallelism", "task scheduling", "What runs while something else is on its way.", _FLEET),
        ("system level", "offloading", "caching", "Experts kept in fast memory, and which."),
        ("system level", "offloading", "prefetching", "Experts loaded before they are chosen."),
        ("system level", "offloading", "CPU assistance", "Experts run where they lie.",
         "On a CPU experts are read from mapped files as they are chosen; nothing divides work with a GPU."),
        ("hardware level", "processing in memory", "simulation", "Arithmetic beside the memory, as a model of it."),
        ("hardware level", "co-design", "accelerators", "Chips made for mixtures.", "Nothing to run them on."),
    )
)  # fmt: skip


def place_of(card: Card) -> tuple[Leaf, ...]:
    """Where a method stands: the leaves that its docstring names, ``;`` between them; none for what stands beside.

    NettError where it says nothing, or names what the taxonomy does not have.
    """
    said = " ".join(card.sections.get("Place", "").rstrip(".").split())
    known = {leaf.place: leaf for leaf in LEAVES}
    if not said:
        raise NettError(
            "says no place in the survey's taxonomy",
            where=card.key,
            hint=f"A line in its docstring, such as: Place: {LEAVES[2].place}",
        )
    if said.startswith(BESIDE):
        return ()
    found = []
    for place in (one.strip() for one in said.split(";")):
        if place not in known:
            raise NettError(f"there is no place {place!r}.{did_you_mean(place, known)}", where=card.key)
        found.append(known[place])
    return tuple(found)


def placed(cards: Sequence[Card]) -> tuple[dict[Leaf, list[Card]], list[Card]]:
    """The leaves in their order, each with its methods; and methods that stand beside."""
    found: dict[Leaf, list[Card]] = {leaf: [] for leaf in LEAVES}
    beside = []
    for card in cards:
        places = place_of(card)
        for leaf in places:
            found[leaf].append(card)
        if not places:
            beside.append(card)
    return found, beside


def registry(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """The same as plain JSON, an entry a leaf; ``elsewhere`` where no method stands."""
    return [
        {
            "level": leaf.path[0],
            "branch": leaf.path[1],
            "kind": leaf.path[2],
            "about": leaf.about,
            "methods": [c.name for c in mine],
            "papers": sorted({p for c in mine for p in c.papers}),
            **({} if mine else {"elsewhere": leaf.elsewhere}),
        }
        for leaf, mine in placed(cards)[0].items()
    ]


def taxonomy_page(cards: Sequence[Card], introduction: str, standing: Mapping[str, str]) -> str:
    """The room's page in Markdown: the taxonomy with every method in its place, and what is not covered."""
    found, beside = placed(cards)
    text = [
        f"# Mixtures of experts\n\n{introduction}\n\nIn the order of P43, a survey: what changes the model, the system that"
    ]
    text.append(" runs it, or the hardware. A method's name leads to its page; what is not covered is said.\n")
    level = branch = ""
    for leaf, mine in found.items():
        if leaf.path[0] != level:
            level, branch = leaf.path[0], ""
            text.append(f"\n## {level.capitalize()}\n")
        if leaf.path[1] != branch:
            branch = leaf.path[1]
            text.append(f"\n### {branch.capitalize()}\n\n| kind | | methods here |\n|---|---|---|\n")
        names = ", ".join(f"[{c.name}]({c.name}.md) ({_about(c, standing)})" for c in mine)
        text.append(f"| {leaf.path[2]} | {leaf.about} | {names or f'None. {leaf.elsewhere}'} |\n")
    if beside:
        text.append("\n## Beside the levels\n\n| method | |\n|---|---|\n")
        text += [f"| [{c.name}]({c.name}.md) | {c.summary} |\n" for c in beside]
    return "".join(text)


def _about(card: Card, standing: Mapping[str, str]) -> str:
    return ", ".join([*card.papers, standing.get(card.key, "unproven")])
