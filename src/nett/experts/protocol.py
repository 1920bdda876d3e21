"""The one shape of this room's methods, and its laws.

A method of kind *reduce* is a function on ``layers``: the model's mixtures in order, each a :class:`Layer` that knows its
sizes and reads its experts when it is asked and no sooner. Behind it stand the statistics of the calibration text that
the method wants, each by its name and each a list with one entry a layer (:data:`STATISTICS`); they are taken on the
original model in one walk before the method is called. So a method may look over all layers before it decides on one
(a budget that is spread over the model), and no more than one layer's experts need be in memory.

It yields one answer a layer, in order, or a function without arguments that makes it, which is only called where an
interrupted run had not come to that layer:

- :class:`Kept`: the experts that stay, as they are.
- :class:`Merged`: new experts, and which of them answers for each old one.

How many experts stay is the method's own business; by the ``keep`` that most have, :mod:`nett.experts.choosing` counts
and ranks. What becomes of the router is not: the engine's ``router`` says it (:mod:`nett.experts.outcome`).

A method whose first operand is ``model`` sees the whole model as a module of transformers in float32, and ``windows`` of
tokens and then a ``shelf`` for its state (:mod:`nett.core.shelf`) where it asks for them, and returns a
:class:`nett.core.whole_model.Shrunk`. One of kind *measure* takes the user's paths itself.

Laws: the same call gives the same bytes; with the card's ``identity`` parameters every bit of the model comes back; what is
written loads in transformers as it was judged (or, where its layers differ, with ``nett.load``, and stock loaders refuse
it); the order of experts is irrelevant, but where chance decides; an expert is not held while another layer's are read; a
run that was killed goes on to the same bytes; a bad parameter is named with its range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor
else:
    Tensor = Any

LAYERS, MODEL = "layers", "model"  # first operands

STATISTICS = {
    "counts": "int64 [E]: tokens that chose each expert",
    "mass": "float64 [E]: sum of the router's weights of an expert over the tokens that chose it",
    "contribution": "float64 [E]: mean over the tokens that chose it of weight * ||output||; 0 for an expert that none chose",
    "coactive": "int64 [E, E]: tokens that chose both; the diagonal is counts",
    "logit_products": "float64 [E, E]: sum over tokens of the product of two experts' router logits",
    "outputs": "float64 [E, H]: mean output of each expert over all tokens, chosen or not",
    "output_products": "float64 [E, E]: mean over all tokens of the inner product of two experts' outputs",
    "inputs": "float32 [n, H]: what comes into the mixture, of some 1024 tokens evenly spread over the text",
}


@final
@dataclass(frozen=True)
class Experts:
    """The experts of one layer: y = down (act(gate x) * up x). ``gate``, ``up``: [E, I, H]; ``down``: [E, H, I]; in the
    model's own type."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def __len__(self) -> int:
        return int(self.gate.shape[0])

    @property
    def width(self) -> int:
        """Neurons of an expert: I."""
        return int(self.gate.shape[1])

    def take(self, index: Any) -> Experts:
        """Those at ``index`` (integers or a boolean mask), in that order."""
        return Experts(self.gate[index], self.up[index], self.down[index])

    def neurons(self, index: Any) -> Experts:
        """Each with its neurons in another order, or some of them: ``index`` int64 [E, I'] or [I']."""
        import torch

        rows = torch.as_tensor(index).expand(len(self), -1)
        wide = rows[..., None].expand(-1, -1, self.gate.shape[2])
        across = rows[:, None, :].expand(-1, self.down.shape[1], -1)
        return Experts(self.gate.gather(1, wide), self.up.gather(1, wide), self.down.gather(2, across))

    def mean(self, weights: Tensor) -> Experts:
        """Weighted means: ``weights`` [G, E], each row summing to 1; computed in float32, returned in the model's type."""

        def of(one: Tensor) -> Tensor:
            made = weights.float() @ one.float().flatten(1)
            return made.reshape(len(weights), *one.shape[1:]).to(one.dtype)

        return Experts(of(self.gate), of(self.up), of(self.down))


class Layer(ABC):
    """One mixture of the model. ``number``: of its block; ``name``: of its module in the file. ``count`` experts (E) of
    ``width`` neurons (I) on ``hidden`` inputs (H), of which a token chooses ``chosen``. ``pools``: sets of experts of which
    equally many must stay, since the router chooses among pools first; most models have one pool.

    Abstract: the engine's reads files, tests make theirs of arrays.
    """

    number: int
    name: str
    count: int
    width: int
    hidden: int
    chosen: int
    pools: Sequence[Sequence[int]]
    least: int  # experts that must stay at least

    @abstractmethod
    def read(self) -> Experts:
        """Its experts, read now. Hold them no longer than this layer is worked on."""

    @abstractmethod
    def router(self) -> Tensor:
        """The router's matrix [E, H], in the model's type."""


@final
@dataclass(frozen=True)
class Kept:
    """``experts``: those that stay, by their numbers, in ascending order. record: what the receipt says of the layer."""

    experts: Sequence[int]
    record: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Merged:
    """``experts``: the G new ones, of any one width. ``groups``: for each of the E old experts the number of the new one
    that answers for it. ``leaders``: for each new one the old expert whose row the router keeps, if it keeps G rows.
    record: what the receipt says of the layer. parts: gate, up, down -> for each new expert the parts of its matrix
    (:mod:`nett.core.checkpoint.split`), which are written in its place; ``experts`` is then what they were made of."""

    experts: Experts
    groups: Sequence[int]
    leaders: Sequence[int]
    record: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Sequence[Mapping[str, Tensor]]] | None = None


Answer = Kept | Merged
Answers = Answer | Callable[[], Answer]  # what a method yields
